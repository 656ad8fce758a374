"""Values that several commands take, and words that they print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gralora.injection.listing import shown

if TYPE_CHECKING:
    from rich.text import Text

Blocks = int | tuple[int, int]

dtypes = click.Choice(["float64", "float32", "bfloat16", "float16"])
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object for machines."
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the adapter in OUT; a model there is never touched."
)


def emit(report: object) -> None:
    """Print what ``--json`` asks for."""
    import json

    click.echo(json.dumps(report, indent=2))


def parse_blocks(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> Blocks | None:
    """Callback of an option for blocks per axis: ``"4"``, or ``"2,4"`` for ``(k_out, k_in)``."""
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"must be blocks per axis (4) or K_OUT,K_IN (2,4), got {value}")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def plural(count: int, noun: str) -> str:
    """``"1 layer"``, ``"2 layers"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def literal(words: str, style: str = "") -> Text:
    """Words from outside for a table: rich prints them as they are, without markup in them."""
    from rich.text import Text

    return Text(shown(words), style)


def examples(*lines: str) -> str:
    """Epilog of a command's help: lines that are printed as they are."""
    # A backspace character at the start of a paragraph keeps click from wrapping it.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
