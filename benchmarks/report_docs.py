"""Makes the tables and plots of docs/benchmarks.md from the files in benchmarks/results/.

    python benchmarks/report_docs.py            rewrites the page and the plots beside it
    python benchmarks/report_docs.py --check    says whether the tables are those of the files

On the page, what lies between ``<!-- results: NAME -->`` and ``<!-- /results -->`` is made from
NAME.json: where and when it was measured, its command line, a plot and tables. A file that does not
exist leaves nothing there; sections that may be empty bring their headings along.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import installed
from doc_tables import command, conditions, tables

from gralora.bench.plots import save_plot

PAGE = installed.ROOT / "docs" / "benchmarks.md"
RESULTS = installed.ROOT / "benchmarks" / "results"

# A heading without results would promise what is not there.
_HEADINGS = {
    "h100_kernels_suite": (
        "Each step by itself",
        "Device time of the steps that an adapter is made of, on operands that are out of the "
        "cache. *Of a copy* is the bandwidth over that of a copy that moves as many bytes; *of a "
        "square product* is the rate over that of a product of large square matrices; *of the "
        "floor* is the time that the bytes take at a long copy's bandwidth, or the products at "
        "the square product's rate where that is longer, over the step's.",
    ),
    "h100_kernels_sm90": (
        "Each step by itself, on Hopper's own path too",
        "The same at commit `d56d0de`, where the path `sm90` began: projections and gradients "
        "whose operands come by bulk copies. Its expansion is that of `sm80`; in a layer it is "
        "part of the base product. *Chosen* since then: `sm90` for projections, and for "
        "gradients above rank 32.",
    ),
    "h100_model": (
        "A whole decoder",
        "Forward and backward of a stack of decoder layers with random weights, all seven "
        "projections adapted, over the frozen stack through which the same gradients flow. Wall "
        "time, as Python starts the work. Ours is adapted by `gralora.inject`, so that projections "
        "that read one input are computed together. *Activations* is what lives between forward "
        "and backward.",
    ),
    "h100_quantised": (
        "Over quantised layers",
        "The same layer with its weight quantised by bitsandbytes or torchao, which then computes "
        "by itself, and the adapter is added to its output. Wall time, as Python starts the work; "
        "*frozen* is the quantised layer alone. Before a GraLoRA row is timed, its results are "
        "compared with that layer's own output and a dense fp64 adapter. bitsandbytes' 8-bit layer "
        "looks for outliers above 6, and its NF4 one has nested statistics; torchao's weights are "
        "int8 by rows and int4 in groups of 128. A layer without a gradient for its input has no "
        "step.",
    ),
    "h100_shared": (
        "Several layers over one input",
        "q, k and v, and gate and up, which read the same input: each adapted layer by itself, and "
        "all computed together by `gralora_linear_group`, which is what `gralora.inject` arranges. "
        "The frozen layers' dx is added up by autograd.",
    ),
    "h100_moe": (
        "Mixture of experts",
        "The experts of a mixture-of-experts layer in transformers' own grouped implementation, "
        "and the same with an adapter for each expert and parameter. Which tokens go where is "
        "random. *PEFT LoRA* is its `target_parameters`, which makes dense differences of all "
        "experts.",
    ),
    "h100_host": (
        "CPU time of a call",
        "What a call costs the CPU while the device is not waited for; *inference* is the "
        "forward pass without autograd.",
    ),
}

_SECTION = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- /results -->", re.DOTALL)
_WIDTH = 110


def render(page: str, results: Path) -> str:
    """The page with every section made anew; all else stays.

    Raises:
        ValueError: the page has no section.
    """
    made, count = _SECTION.subn(lambda found: _section(found[1], results), page)
    if count == 0:
        raise ValueError("the page has no line <!-- results: NAME -->")
    return made


def _section(name: str, results: Path) -> str:
    parts = [f"<!-- results: {name} -->"]
    path = results / f"{name}.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        if name in _HEADINGS:
            title, introduction = _HEADINGS[name]
            parts += [f"## {title}", _filled(introduction)]
        parts.append(_filled(conditions(record)))
        parts.append(command(record))
        if record["timings"]:
            parts.append(f"![Plot of the table below](images/{name}.png)")
        parts += tables(record)
    return "\n\n".join([*parts, "<!-- /results -->"])


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, _WIDTH, break_on_hyphens=False)


def draw(page: str, results: Path, images: Path) -> list[Path]:
    """Draw every section's plot, as PNG; returns the files."""
    drawn = []
    for name in _SECTION.findall(page):
        path = results / f"{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["timings"]:
            drawn.append(save_plot(record, images / f"{name}.png"))
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the page; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/report_docs.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    before = options.page.read_text(encoding="utf-8")
    after = render(before, options.results)
    if options.check:
        if before != after:
            print(f"{options.page.name} is not that of the results: run {parser.prog}")
        return int(before != after)
    options.page.write_text(after, encoding="utf-8")
    for path in draw(after, options.results, options.page.parent / "images"):
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
