"""Result files as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_MIB = 1 << 20
_FILE_WIDTH = 160
_DISTURBED = 0.05


def console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=_FILE_WIDTH)


def show(record: dict[str, Any], console: Console, *, short: bool = False) -> None:
    """Print a result file as tables; ``short`` gives one row to each case of the layer suite."""
    console.print(_heading(record["environment"]), markup=False, highlight=False)
    if record["suite"] == "merge":
        _show_merge(record, console)
    elif short:
        _show_layer_short(record, console)
    else:
        _show_layer(record, console)
    disturbed = _disturbed_rounds(record["timings"])
    if disturbed:
        console.print(
            f"{disturbed} rounds stand although other programs took more than 5% of the CPU",
            style="yellow",
        )
    for reason, names in _skips(record.get("skipped", ())).items():
        console.print(f"skipped {', '.join(names)}: {reason}", style="yellow", markup=False)


def _heading(environment: dict[str, Any]) -> str:
    gpu = environment.get("gpu")
    where = gpu["name"] if gpu else f"{environment['cpu']}, {environment['cpu_threads']} threads"
    versions = ", ".join(
        f"{name} {environment['packages'][name] or 'missing'}"
        for name in ("torch", "peft", "gralora")
    )
    return f"{where}; {versions}; commit {environment['commit'][:12]}; {environment['date']}"


def _case_text(case: dict[str, Any]) -> str:
    cold = ", weights cold" if case["cold"] else ""
    return (
        f"{case['in_features']}→{case['out_features']}, T {case['tokens']}, "
        f"r {case['rank']}, k {case['grid']}, {case['dtype']}{cold}"
    )


def _show_layer(record: dict[str, Any], console: Console) -> None:
    def group(timing: dict[str, Any]) -> tuple[str, str]:
        return _case_text(timing["case"]), timing["mode"]

    for (case, mode), timings in groupby(record["timings"], key=group):
        console.print(_layer_table(f"{case}: {mode}", list(timings)))
    for case, memory in groupby(record["memory"], key=lambda entry: _case_text(entry["case"])):
        console.print(_memory_table(case, list(memory)))


def _show_layer_short(record: dict[str, Any], console: Console) -> None:
    for mode in dict.fromkeys(timing["mode"] for timing in record["timings"]):
        timings = [timing for timing in record["timings"] if timing["mode"] == mode]
        console.print(_short_table(f"{mode}: forward / step over base", timings))
    for case, memory in groupby(record["memory"], key=lambda entry: _case_text(entry["case"])):
        console.print(_memory_table(case, list(memory)))


def _short_table(title: str, timings: list[dict[str, Any]]) -> Table:
    variants = list(dict.fromkeys(timing["variant"] for timing in timings))
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("case")
    for name in variants:
        table.add_column(f"{name} µs" if name == "base" else name, justify="right")
    for case, group in groupby(timings, key=lambda timing: _case_text(timing["case"])):
        found = {(timing["variant"], timing["pass"]): timing for timing in group}
        cells = []
        for name in variants:
            forward, step = found.get((name, "forward")), found.get((name, "step"))
            cells.append(
                f"{_microseconds(forward)} / {_microseconds(step)}"
                if name == "base"
                else f"{_ratio(forward, 'base')} / {_ratio(step, 'base')}"
            )
        table.add_row(case, *cells)
    return table


def _layer_table(title: str, timings: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("variant", no_wrap=True)
    for name in ("fwd µs", "/base", "step µs", "/base", "quartiles", "/PEFT GraLoRA"):
        table.add_column(name, justify="right")
    for name in ("TFLOP/s", "GB/s"):
        table.add_column(name, justify="right")
    for variant in dict.fromkeys(timing["variant"] for timing in timings):
        passes = {t["pass"]: t for t in timings if t["variant"] == variant}
        forward, step = passes.get("forward"), passes.get("step")
        table.add_row(
            variant,
            _microseconds(forward),
            _ratio(forward, "base"),
            _microseconds(step),
            _ratio(step, "base"),
            _quartiles(step, "base"),
            _ratio(step, "peft_gralora"),
            f"{step['tflop_per_s']:.3g}" if step else "",
            f"{step['gb_per_s']:.4g}" if step else "",
        )
    return table


def _microseconds(timing: dict[str, Any] | None) -> str:
    if not timing:
        return ""
    microseconds = timing["seconds"]["median"] * 1e6
    return f"{microseconds:.1f}" if microseconds < 1e4 else f"{microseconds:.0f}"


def _ratio(timing: dict[str, Any] | None, reference: str) -> str:
    found = timing["ratio"].get(reference) if timing else None
    return f"{found['median']:.3f}" if found else ""


def _quartiles(timing: dict[str, Any] | None, reference: str) -> str:
    found = timing["ratio"].get(reference) if timing else None
    return f"{found['q1']:.3f}-{found['q3']:.3f}" if found else ""


def _memory_table(case: str, records: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{case}: memory of a step, MiB", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("variant", no_wrap=True)
    for name in ("saved", "x + H", "peak", "peak over base", "H + G + gradients"):
        table.add_column(name, justify="right")
    base_peak = next((r["peak_bytes"] for r in records if r["variant"] == "base"), None)
    for record in records:
        peak = record["peak_bytes"]
        over = peak - base_peak if peak is not None and base_peak is not None else None
        latent, parameters = record["latent_bytes"], record["parameter_bytes"]
        table.add_row(
            record["variant"],
            _mebibytes(record["saved_bytes"]),
            _mebibytes(record["x_bytes"] + latent) if latent else "",
            _mebibytes(peak),
            _mebibytes(over),
            _mebibytes(2 * latent + parameters) if latent else "",
        )
    return table


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / _MIB:.1f}"


def _show_merge(record: dict[str, Any], console: Console) -> None:
    case = record["case"]
    table = Table(
        title=f"weight {case['out_features']}x{case['in_features']} {case['dtype']}, "
        f"r {case['rank']}, k {case['grid']}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("operation")
    table.add_column("mode")
    for name in ("µs", "GB/s", "share of copy", "quartiles"):
        table.add_column(name, justify="right")
    for timing in record["timings"]:
        share = timing["share_of_copy"]
        table.add_row(
            timing["variant"],
            timing["mode"],
            _microseconds(timing),
            f"{timing['gb_per_s']:.4g}",
            f"{share['median']:.3f}",
            f"{share['q1']:.3f}-{share['q3']:.3f}",
        )
    console.print(table)


def _disturbed_rounds(timings: Iterable[dict[str, Any]]) -> int:
    """Rounds that count for want of quieter ones; variants of a comparison share their rounds."""
    comparisons = {tuple(timing["others_cpu_share"]) for timing in timings}
    return sum(share > _DISTURBED for shares in comparisons for share in shares)


def _skips(skipped: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Reasons with the variants they hold for, each once."""
    reasons: dict[str, list[str]] = {}
    for entry in skipped:
        names = reasons.setdefault(entry["reason"], [])
        if entry["variant"] not in names:
            names.append(entry["variant"])
    return reasons
