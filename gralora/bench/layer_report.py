"""Results of the layer suite as tables for a terminal."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from gralora.bench.case import case_text
from gralora.bench.report import mebibytes, microseconds, new_table, quartiles, ratio


def show_layer(record: dict[str, Any], console: Console, short: bool) -> None:
    """One table to each layer, or one row to each where it is to be ``short``; then memory."""
    if short:
        for mode in dict.fromkeys(timing["mode"] for timing in record["timings"]):
            timings = [timing for timing in record["timings"] if timing["mode"] == mode]
            console.print(_short_table(f"{mode}: forward / step over base", timings))
    else:
        for (case, mode), group in groupby(record["timings"], key=_case_and_mode):
            console.print(_layer_table(f"{case}: {mode}", list(group)))
    for case, memory in groupby(record["memory"], key=lambda entry: case_text(entry["case"])):
        console.print(_memory_table(case, list(memory)))


def _case_and_mode(timing: dict[str, Any]) -> tuple[str, str]:
    return case_text(timing["case"]), timing["mode"]


def _short_table(title: str, timings: list[dict[str, Any]]) -> Table:
    variants = list(dict.fromkeys(timing["variant"] for timing in timings))
    names = [f"{name} µs" if name == "base" else name for name in variants]
    table = new_table(title, ("case", *names))
    for case, group in groupby(timings, key=lambda timing: case_text(timing["case"])):
        found = {(timing["variant"], timing["pass"]): timing for timing in group}
        cells = []
        for name in variants:
            forward, step = found.get((name, "forward")), found.get((name, "step"))
            cells.append(
                f"{microseconds(forward)} / {microseconds(step)}"
                if name == "base"
                else f"{ratio(forward, 'base')} / {ratio(step, 'base')}"
            )
        table.add_row(case, *cells)
    return table


def _layer_table(title: str, timings: list[dict[str, Any]]) -> Table:
    columns = ("variant", "fwd µs", "/base", "step µs", "/base", "quartiles", "/PEFT GraLoRA")
    table = new_table(title, (*columns, "TFLOP/s", "GB/s"))
    for variant in dict.fromkeys(timing["variant"] for timing in timings):
        passes = {t["pass"]: t for t in timings if t["variant"] == variant}
        forward, step = passes.get("forward"), passes.get("step")
        table.add_row(
            variant,
            microseconds(forward),
            ratio(forward, "base"),
            microseconds(step),
            ratio(step, "base"),
            quartiles(step, "base"),
            ratio(step, "peft_gralora"),
            f"{step['tflop_per_s']:.3g}" if step else "",
            f"{step['gb_per_s']:.4g}" if step else "",
        )
    return table


def _memory_table(case: str, records: list[dict[str, Any]]) -> Table:
    columns = ("variant", "saved", "x + H", "peak", "peak over base", "H + G + gradients")
    table = new_table(f"{case}: memory of a step, MiB", columns)
    base_peak = next((r["peak_bytes"] for r in records if r["variant"] == "base"), None)
    for record in records:
        peak = record["peak_bytes"]
        over = peak - base_peak if peak is not None and base_peak is not None else None
        latent, parameters = record["latent_bytes"], record["parameter_bytes"]
        table.add_row(
            record["variant"],
            mebibytes(record["saved_bytes"]),
            mebibytes(record["x_bytes"] + latent) if latent else "",
            mebibytes(peak),
            mebibytes(over),
            mebibytes(2 * latent + parameters) if latent else "",
        )
    return table
