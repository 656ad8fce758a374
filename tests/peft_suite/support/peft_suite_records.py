"""Outcomes of tests in a file: one JSON object a line, so that a killed process loses none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

CRASHED = "crashed"


@dataclass(frozen=True)
class Record:
    """What a test came to.

    Attributes:
        test: its id.
        outcome: passed, failed, skipped, xfailed, xpassed or crashed.
        message: why, where it did not pass.
        calls: of gralora's layers while it ran.

    """

    test: str
    outcome: str
    message: str = ""
    calls: int = 0


def append(path: Path, entry: Record | dict[str, int]) -> None:
    """Add one line."""
    fields = asdict(entry) if isinstance(entry, Record) else entry
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def _lines(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read(path: Path) -> list[Record]:
    """Every test with its last outcome, in the order in which they were started."""
    last = {}
    for fields in _lines(path):
        if "test" in fields:
            last[fields["test"]] = Record(**fields)  # type: ignore[arg-type]
    return list(last.values())


def left(path: Path) -> int | None:
    """How many tests the last process left to the next; None where it collected none."""
    counts = [fields["left"] for fields in _lines(path) if "left" in fields]
    return counts[-1] if counts else None  # type: ignore[return-value]
