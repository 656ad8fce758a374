"""Where each layer of an adapter stands in a heat map: rows by depth, columns by kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Rows and columns, and the cell of each layer.

    Attributes:
        rows: their labels, from the top.
        columns: their labels, from the left.
        cells: ``(row, column)`` by full module name.

    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[str, tuple[int, int]]


def arrange(names: Iterable[str]) -> Layout:
    """Cut names at their first number: ``model.layers.3.mlp.up_proj`` is row 3, column up_proj.

    Rows of one list of layers are labelled by number, those of several by list and number. Columns
    are labelled by the shortest ends that tell them apart. Layers without a number share a
    last row.
    """
    places = {name: _cut(name) for name in names}
    rows = sorted({row for row, _ in places.values()}, key=lambda row: (row[1] < 0, row))
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    return Layout(
        tuple(_row_labels(rows)),
        tuple(_shortest(kinds)),
        {name: (rows.index(row), kinds.index(kind)) for name, (row, kind) in places.items()},
    )


def _cut(name: str) -> tuple[tuple[str, int], str]:
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) < 10:
            return (".".join(parts[:position]), int(part)), ".".join(parts[position + 1 :])
    return ("", -1), name


def _row_labels(rows: list[tuple[str, int]]) -> list[str]:
    lists = _shortest(list(dict.fromkeys(prefix for prefix, number in rows if number >= 0)))
    prefixes = list(dict.fromkeys(prefix for prefix, number in rows if number >= 0))
    short = dict(zip(prefixes, lists, strict=True))
    labels = []
    for prefix, number in rows:
        if number < 0:
            labels.append("others")
        else:
            labels.append(f"{short[prefix]} {number}" if len(prefixes) > 1 else str(number))
    return labels


def _shortest(names: list[str]) -> list[str]:
    """Ends of names, from a dot on, that are different and as short as can be."""
    depth = max((name.count(".") for name in names), default=0) + 1
    for count in range(1, depth + 1):
        ends = [".".join(name.split(".")[-count:]) for name in names]
        if len(set(ends)) == len(names):
            return ends
    return names
