"""Suite ``merge``: options of the command line, and its table."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

from merge import run_merge
from rich.console import Console

from gralora.bench.case import Case
from gralora.bench.report import microseconds, new_table
from gralora.bench.shapes import parse_ranks, parse_shapes
from gralora.bench.suite import (
    Context,
    Record,
    Run,
    Suite,
    add_mode_option,
    check_grid,
    modes_of,
)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--shape", help="in x out features: 4096x14336")
    parser.add_argument("--rk", default="64:4", help="rank and grid (default %(default)s)")
    add_mode_option(parser)


def _prepare(options: Namespace) -> Run:
    (shape,), ((rank, grid),) = parse_shapes(options.shape), parse_ranks(options.rk)
    case = Case(shape.in_features, shape.out_features, 0, rank, grid, options.dtype)
    check_grid(case)
    return partial(_run, case, modes_of(options))


def _run(case: Case, modes: list[str], context: Context) -> Record:
    return run_merge(case, context.device, modes, context.rounds, context.on_progress)


def _show_merge(record: dict[str, Any], console: Console, short: bool) -> None:
    case = record["case"]
    title = (
        f"weight {case['out_features']}x{case['in_features']} {case['dtype']}, "
        f"r {case['rank']}, k {case['grid']}"
    )
    columns = ("operation", "mode", "µs", "GB/s", "share of copy", "quartiles")
    table = new_table(title, columns, text_columns=2)
    for timing in record["timings"]:
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
        "cpu": {"shape": "1024x1024", "dtype": "fp32", "rounds": 31},
        "cuda": {"shape": "4096x14336", "dtype": "bf16", "rounds": 31},
    },
    add_options=_add_options,
    prepare=_prepare,
    show=_show_merge,
)
