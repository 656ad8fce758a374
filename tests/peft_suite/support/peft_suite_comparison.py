"""Compares the outcomes of the same tests without and with acceleration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from peft_suite_records import Record

# A failing assertion is a result too, but one for want of a file from the network says nothing.
_NETWORK = re.compile(
    r"offline|outgoing traffic|LocalEntryNotFound|Couldn't (?:reach|connect)|We couldn't connect"
    r"|not a valid model identifier|locate the file on the Hub|Connection",
    re.IGNORECASE,
)

BOTH_PASSED = "passed in both"
BOTH_FAILED = "failed in both"
BOTH_SKIPPED = "skipped in both"
NETWORK = "needs the network"
FAULT = "passed only without"
GAIN = "passed only with"
COLUMNS = (
    *(BOTH_PASSED, BOTH_FAILED, BOTH_SKIPPED, NETWORK, FAULT, GAIN),
    *("ran fused", "calls"),
)

_GOOD = ("passed", "xfailed")


@dataclass(frozen=True)
class Verdict:
    """One test in both runs; `accelerated` is None where it did not run a second time."""

    plain: Record
    accelerated: Record | None
    kind: str


def needs_network(record: Record) -> bool:
    """Whether a test failed or was skipped because something would have to be downloaded."""
    return record.outcome not in _GOOD and bool(_NETWORK.search(record.message))


def compare(plain: Iterable[Record], accelerated: Iterable[Record]) -> list[Verdict]:
    """Judge every test of the run without acceleration, in its order."""
    second = {record.test: record for record in accelerated}
    return [
        Verdict(record, second.get(record.test), _kind(record, second.get(record.test)))
        for record in plain
    ]


def _kind(plain: Record, accelerated: Record | None) -> str:
    if needs_network(plain):
        return NETWORK
    before = plain.outcome
    after = accelerated.outcome if accelerated else "missing"
    if before in _GOOD:
        return BOTH_PASSED if after == before else FAULT
    if after in _GOOD:
        return GAIN
    return BOTH_SKIPPED if before == after == "skipped" else BOTH_FAILED


def counts(verdicts: Iterable[Verdict]) -> dict[str, dict[str, int]]:
    """By file: tests of each kind, tests in which fused layers ran, and calls of these."""
    files: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        name = verdict.plain.test.split("::")[0].rpartition("/")[2]
        calls = verdict.accelerated.calls if verdict.accelerated else 0
        files.setdefault(name, Counter()).update(
            {verdict.kind: 1, "ran fused": int(calls > 0), "calls": calls}
        )
    return {name: {column: found[column] for column in COLUMNS} for name, found in files.items()}


def table(verdicts: list[Verdict]) -> str:
    """One row a file, and one for all of them."""
    files = counts(verdicts)
    total = {column: sum(row[column] for row in files.values()) for column in COLUMNS}
    lines = [
        (name, *(str(row[column]) for column in COLUMNS))
        for name, row in (*files.items(), ("all", total))
    ]
    header = ("file", *COLUMNS)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *lines)
    )
