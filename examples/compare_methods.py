"""Run finetune.py with each of the four methods; keep the results, a figure and a table.

    python examples/compare_methods.py

Model, text and everything that is not an option here are finetune.py's defaults.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from finetuning.figure import Curve, draw
from finetuning.methods import METHODS
from finetuning.record import write_json

EXAMPLES = Path(__file__).resolve().parent
RESULTS = EXAMPLES / "results" / "methods.json"
FIGURE = EXAMPLES.parent / "docs" / "images" / "finetune_loss.png"

_GIB = 1 << 30
# Waiting for memory and for one another costs the threads a few percent on a quiet machine too.
_UNDISTURBED = 0.85
# Of the machine that ran it, not of the result.
_LOCAL_OPTIONS = ("model", "text", "out", "cache")


def measure(method: str, arguments: list[str]) -> dict[str, Any]:
    """Run one method; return what is worth keeping of its record."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(EXAMPLES / "finetune.py"), "--method", method]
        print(f"{method}:", flush=True)
        subprocess.run([*command, "--out", folder, *arguments], check=True)
        run: dict[str, Any] = json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))
    del run["files"]
    for name in _LOCAL_OPTIONS:
        del run["options"][name]
    return run


def curves(results: dict[str, Any]) -> list[Curve]:
    """The loss curve of each method."""
    return [
        Curve(method, computed["losses"], _by_step(computed["held_out_losses"]))
        for method, computed in _computations(results)
    ]


def markdown(results: dict[str, Any]) -> str:
    """The table of README.md: one row for each method."""
    lines = [
        "| method | trained parameters | learning rate | held-out loss | tokens/s | peak memory |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for method, computed in _computations(results):
        run = results[method]
        trainable, total = computed["trainable_parameters"], computed["parameters"]
        losses = list(computed["held_out_losses"].values())
        cells = [
            method,
            f"{trainable:,} ({trainable / total:.1%})",
            f"{run['options']['lr']:g}",
            f"{losses[0]:.3f} → {losses[-1]:.3f}",
            f"{run['timings']['tokens_per_s']:,.0f}",
            f"{run['peak_memory_bytes'] / _GIB:.1f} GiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def conditions(results: dict[str, Any]) -> str:
    """What was run on what, in one line."""
    run = next(iter(results.values()))
    environment, options = run["environment"], run["options"]
    where = environment.get("gpu") or f"{environment['cpu']}, {environment['threads']} threads"
    size = f"{options['steps']} steps of {options['batch']} x {options['seq_len']} tokens"
    torch_version = environment["packages"]["torch"]
    line = f"{size}, r {options['r']}, k {options['k']}; {where}; torch {torch_version}"
    share = min(_cpu_share(run) for run in results.values())
    if options["device"] == "cpu" and share < _UNDISTURBED:
        line += f"; as little as {share:.0%} of the CPU, other programs had the rest"
    return line


def _cpu_share(run: dict[str, Any]) -> float:
    """The part of all threads' time that training really got."""
    timings = run["timings"]
    available: float = timings["training_s"] * run["environment"]["threads"]
    return timings["training_cpu_s"] / available


def _computations(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(method, run["computation"]) for method, run in results.items()]


def _by_step(losses: dict[str, float]) -> dict[int, float]:
    return {int(step): loss for step, loss in losses.items()}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("steps", "seed"):
        parser.add_argument(f"--{name}", help="finetune.py's")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="finetune.py's (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file (%(default)s)")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="PNG file (%(default)s)")
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=METHODS,
        default=METHODS,
        metavar="METHOD",
        help="measure only these and take the others from --results; without any, only draw",
    )
    return parser.parse_args()


def main() -> None:
    """Measure, keep each result at once, draw and print."""
    options = parse_options()
    given = [(f"--{name}", getattr(options, name)) for name in ("steps", "seed", "device")]
    arguments = [part for pair in given if pair[1] is not None for part in pair]
    results: dict[str, Any] = {}
    if options.results.exists() and set(options.methods) != set(METHODS):
        results = json.loads(options.results.read_text(encoding="utf-8"))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        results[method] = measure(method, arguments)
        results = {name: results[name] for name in METHODS if name in results}
        write_json(options.results, results)
    if not results:
        raise SystemExit(f"error: --results: nothing to draw, {options.results} does not exist")
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(curves(results), "SmolLM2-135M-Instruct on Python's standard library", options.figure)
    print(f"{markdown(results)}\n\n{conditions(results)}")


if __name__ == "__main__":
    main()
