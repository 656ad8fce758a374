"""Suite ``host``: options of the command line, and its table."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from itertools import groupby
from typing import Any

from host import PASSES, run_host
from rich.console import Console

from gralora.bench.case import DTYPES, case_text
from gralora.bench.layer_suite import add_layer_options, cases_of
from gralora.bench.report import microseconds, new_table, ratio
from gralora.bench.suite import Run, Suite, choose_names
from gralora.bench.variants import BUILDERS, ON_PATH

# Forcing a path takes time itself, so those variants are the layer suite's.
_VARIANTS = [name for name in BUILDERS if name not in ON_PATH]


def _add_options(parser: ArgumentParser) -> None:
    add_layer_options(parser)
    parser.add_argument("--variants", help=f"any of {','.join(_VARIANTS)}")


def _prepare(options: Namespace) -> Run:
    half = DTYPES[options.dtype].itemsize == 2
    usual = [
        name
        for name in _VARIANTS
        if name != "peft_gralora_compiled" and (half or not name.endswith(("_fp32", "_autocast")))
    ]
    options.variants = choose_names("variants", options.variants, _VARIANTS, usual)
    return partial(run_host, cases_of(options), options.variants)


def _show_host(record: dict[str, Any], console: Console, short: bool) -> None:
    columns = [name for pass_name in PASSES for name in (f"{pass_name} µs", "/base")]
    for case, timings in groupby(record["timings"], key=lambda timing: case_text(timing["case"])):
        found = {(timing["variant"], timing["pass"]): timing for timing in timings}
        table = new_table(f"{case}: CPU time of a call", ("variant", *columns))
        for variant in dict.fromkeys(variant for variant, _ in found):
            cells = []
            for pass_name in PASSES:
                timing = found.get((variant, pass_name))
                cells += [microseconds(timing), ratio(timing, "base")]
            table.add_row(variant, *cells)
        console.print(table)


HOST = Suite(
    name="host",
    help="CPU time of a call, the device not waited for",
    defaults={
        "cpu": {"shapes": "16x16", "tokens": "1", "rk": "4:2", "dtype": "fp32", "rounds": 31},
        "cuda": {
            "shapes": "1024x1024",
            "tokens": "1",
            "rk": "64:4",
            "dtype": "bf16",
            "rounds": 31,
        },
    },
    add_options=_add_options,
    prepare=_prepare,
    show=_show_host,
)
