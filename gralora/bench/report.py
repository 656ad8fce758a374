"""Result files as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gralora.bench.bases import libraries

_MIB = 1 << 20
_FILE_WIDTH = 160
_DISTURBED = 0.05


def console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=_FILE_WIDTH)


def show(
    record: dict[str, Any],
    console: Console,
    tables: Callable[[dict[str, Any], Console, bool], None],
    *,
    short: bool = False,
) -> None:
    """Print where and with what a record was made, its tables, and what to mind about them.

    Args:
        record: a result file's.
        console: where to print.
        tables: prints the tables of the record's suite.
        short: whether the tables are to be short, where the suite has such.
    """
    console.print(_heading(record), markup=False, highlight=False)
    tables(record, console, short)
    disturbed = _disturbed_rounds(record["timings"])
    if disturbed:
        console.print(
            f"{disturbed} rounds stand although other programs took more than 5% of the CPU",
            style="yellow",
        )
    for reason, names in _skips(record.get("skipped", ())).items():
        console.print(f"skipped {', '.join(names)}: {reason}", style="yellow", markup=False)


def _heading(record: dict[str, Any]) -> str:
    environment = record["environment"]
    gpu = environment.get("gpu")
    where = gpu["name"] if gpu else f"{environment['cpu']}, {environment['cpu_threads']} threads"
    versions = ", ".join(
        f"{name} {environment['packages'][name] or 'missing'}"
        for name in ("torch", "peft", "gralora", *libraries(record["settings"]))
    )
    return f"{where}; {versions}; commit {environment['commit'][:12]}; {environment['date']}"


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


def new_table(title: str, columns: Iterable[str], text_columns: int = 1) -> Table:
    """An empty table; all columns but the first ``text_columns`` hold numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for index, name in enumerate(columns):
        if index < text_columns:
            table.add_column(name, no_wrap=index == 0)
        else:
            table.add_column(name, justify="right")
    return table


def microseconds(timing: dict[str, Any] | None) -> str:
    """The median of a timing; nothing without one."""
    if not timing:
        return ""
    value = timing["seconds"]["median"] * 1e6
    return f"{value:.1f}" if value < 1e4 else f"{value:.0f}"


def ratio(timing: dict[str, Any] | None, reference: str) -> str:
    """The median ratio of a timing over a variant; nothing where they were not compared."""
    found = timing["ratio"].get(reference) if timing else None
    return f"{found['median']:.3f}" if found else ""


def quartiles(timing: dict[str, Any] | None, reference: str) -> str:
    """The quartiles of that ratio."""
    found = timing["ratio"].get(reference) if timing else None
    return f"{found['q1']:.3f}-{found['q3']:.3f}" if found else ""


def mebibytes(count: int | None) -> str:
    """Bytes in MiB; nothing where they were not measured."""
    return "" if count is None else f"{count / _MIB:.1f}"
