"""Results of the kernels suite as tables for a terminal."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console

from gralora.bench.case import case_text
from gralora.bench.report import microseconds, new_table

_COLUMNS = ("step", "path", "µs", "MB", "GB/s", "of copy", "TFLOP/s", "of product", "of floor")


def show_kernels(record: dict[str, Any], console: Console, short: bool) -> None:
    """One table to each case; under its title what the device does at best."""
    yardsticks = {case_text(entry["case"]): entry for entry in record["yardsticks"]}
    for case, timings in groupby(record["timings"], key=lambda timing: case_text(timing["case"])):
        best = yardsticks[case]
        title = (
            f"{case}: long copy {best['long_copy']['gb_per_s']:.4g} GB/s, square product "
            f"{best['square_product']['tflop_per_s']:.3g} TFLOP/s"
        )
        table = new_table(title, _COLUMNS, text_columns=2)
        for timing in timings:
            multiplies = timing["flop"] > 0
            table.add_row(
                timing["variant"],
                timing["path"],
                microseconds(timing),
                f"{timing['bytes_moved'] * 1e-6:.1f}",
                f"{timing['gb_per_s']:.4g}",
                f"{timing['share_of_copy']['median']:.2f}",
                f"{timing['tflop_per_s']:.3g}" if multiplies else "",
                f"{timing['share_of_matrix_rate']['median']:.2f}" if multiplies else "",
                f"{timing['share_of_floor']['median']:.2f}",
            )
        console.print(table)
