"""The layers of an adapter as lines of a terminal: none of their numbers is cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gralora.cli.options import literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gralora.adapters.inspection import AdapterReport, LayerReport

# Headings in two lines, as narrow terminals get them.
_COLUMNS = (
    ("", "M x N"),
    ("", "k"),
    ("", "r"),
    ("", "parameters"),
    ("", "‖ΔW‖"),
    ("blocks", "max/min"),
    ("rank", "at most"),
    ("", "entropy"),
    ("99%", "energy"),
)
_INDENT = "  "
# Wider than any table, for measuring one.
_ANY = 100_000


def print_layers(report: AdapterReport, headline: str, console: Console) -> None:
    """Print a table with a row for each layer, or two lines for each where that is too wide.

    Args:
        report: the layers.
        headline: goes before them.
        console: to print to; where it is no terminal, rows may be of any length.

    """
    from rich.measure import Measurement

    table = _table(report)
    needed = Measurement.get(console, console.options.update(width=_ANY), table).maximum
    console.print(literal(headline), soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, needed)
    if needed <= console.width:
        console.print(table)
        return
    for line in _pairs(report, console.width):
        console.print(literal(line), soft_wrap=True)


def _table(report: AdapterReport) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("layer")
    for heading in _COLUMNS:
        table.add_column(" ".join(heading).strip(), justify="right")
    for name, layer in report.layers.items():
        table.add_row(literal(name), *_numbers(layer))
    return table


def _pairs(report: AdapterReport, width: int) -> list[str]:
    """The name of each layer, and below it the numbers, in columns."""
    rows = [_numbers(layer) for layer in report.layers.values()]
    headings = list(zip(*_COLUMNS, strict=True))
    widths = [max(map(len, column)) for column in zip(*headings, *rows, strict=True)]
    gap = "  " if len(_INDENT) + sum(widths) + 2 * (len(widths) - 1) <= width else " "

    def line(cells: tuple[str, ...]) -> str:
        return _INDENT + gap.join(
            cell.rjust(wide) for cell, wide in zip(cells, widths, strict=True)
        )

    lines = ["", *map(line, headings)]
    for name, row in zip(report.layers, rows, strict=True):
        lines += [name, line(row)]
    return lines


def _numbers(layer: LayerReport) -> tuple[str, ...]:
    from gralora.adapters import words

    return (
        words.by(layer.out_features, layer.in_features),
        words.grid(layer.spec),
        words.rank(layer.spec),
        f"{layer.parameters:,}",
        f"{layer.norm:.4g}",
        f"{layer.spread:.3g}",
        str(layer.largest_rank),
        f"{layer.entropy_rank:.1f}",
        str(layer.energy_rank),
    )
