"""Suite ``merge``: options of the command line, and its table."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

from merge import OPERATIONS, run_merge
from rich.console import Console

from gralora.bench.case import DTYPES, Case, timings_by_weight
from gralora.bench.report import microseconds, new_table
from gralora.bench.shapes import MODELS, parse_ranks, parse_shapes
from gralora.bench.suite import (
    Run,
    Suite,
    add_mode_option,
    check_grid,
    choose_names,
    modes_of,
)


def _add_options(parser: ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shapes", help="in x out features: 4096x4096,4096x14336")
    what.add_argument("--preset", choices=MODELS, help="the layer shapes of a model")
    parser.add_argument(
        "--rk", default="64:4", help="rank and grid: 32:2,64:4 (default %(default)s)"
    )
    parser.add_argument(
        "--variants",
        help=f"any of {','.join(OPERATIONS)}, beside copies (default: all that fit the dtype)",
    )
    add_mode_option(parser)


def _prepare(options: Namespace) -> Run:
    shapes = MODELS[options.preset] if options.preset else parse_shapes(options.shapes)
    cases = [
        Case(shape.in_features, shape.out_features, 0, rank, grid, options.dtype)
        for shape in shapes
        for rank, grid in parse_ranks(options.rk)
    ]
    for case in cases:
        check_grid(case)
    half = DTYPES[options.dtype].itemsize == 2
    usual = [name for name in OPERATIONS if half or not name.endswith("_fp32")]
    options.variants = choose_names("variants", options.variants, list(OPERATIONS), usual)
    return partial(run_merge, cases, modes_of(options), options.variants)


def _show_merge(record: dict[str, Any], console: Console, short: bool) -> None:
    columns = ("operation", "mode", "µs", "GB/s", "share of copy", "quartiles")
    for case, timings in timings_by_weight(record):
        title = (
            f"weight {case['out_features']}x{case['in_features']} {case['dtype']}, "
            f"r {case['rank']}, k {case['grid']}"
        )
        table = new_table(title, columns, text_columns=2)
        for timing in timings:
            share = timing["share_of_copy"]
            table.add_row(
                timing["variant"],
                timing["mode"],
                microseconds(timing),
                f"{timing['gb_per_s']:.4g}",
                f"{share['median']:.3f}",
                f"{share['q1']:.3f}-{share['q3']:.3f}",
            )
        console.print(table)


MERGE = Suite(
    name="merge",
    help="merging a weight, against copy bandwidth",
    defaults={
        "cpu": {"shapes": "1024x1024", "dtype": "fp32", "rounds": 31},
        "cuda": {"shapes": "4096x14336", "dtype": "bf16", "rounds": 31},
    },
    add_options=_add_options,
    prepare=_prepare,
    show=_show_merge,
)
