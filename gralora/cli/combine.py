"""``gralora combine``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import (
    Blocks,
    emit,
    examples,
    json_option,
    literal,
    overwrite_option,
    parse_blocks,
    plural,
)
from gralora.cli.progress import counted
from gralora.injection.listing import shown

if TYPE_CHECKING:
    from gralora.adapters.combine import Combined

_EXPERTS = "PEFT's GraLoRA has no fused experts; gralora export-lora writes any adapter as a LoRA"
_FOR_PEFT = (
    "for an adapter that PEFT loads, give --rank R and --k K, a number each; gralora export-lora "
    "writes any as a LoRA"
)


def _parse_weights(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[float] | None:
    try:
        return None if value is None else [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"must be numbers with commas between them (0.7,0.3), got {value}"
        ) from None


@click.command(
    "combine",
    epilog=examples(
        "gralora combine maths code both",
        "gralora combine maths code both --weights 0.7,0.3",
        "gralora combine maths code both --weights 1,-0.5 --rank 64 --k 4",
    ),
    short_help="Sum adapters, with weights, into one.",
)
@click.argument(
    "adapters", nargs=-1, required=True, metavar="ADAPTER...", type=click.Path(path_type=Path)
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--weights",
    callback=_parse_weights,
    metavar="W,...",
    help="Factor of each adapter, with commas between them; 1 for each by default.",
)
@click.option(
    "--rank", type=click.IntRange(min=1), help="Rank of the result; the sum is approximated in it."
)
@click.option(
    "--k",
    callback=parse_blocks,
    metavar="K",
    help="With --rank: blocks per axis of the result, or K_OUT,K_IN.",
)
@overwrite_option
@json_option
@shell_errors("combine", writes="out")
def combine(
    adapters: tuple[Path, ...],
    out: Path,
    weights: list[float] | None,
    rank: int | None,
    k: Blocks | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the weighted sum of adapters to OUT as one adapter.

    Adapters of one grid are summed exactly, their ranks side by side. With --rank each block of the
    sum becomes its best approximation of that rank; that also serves adapters of different grids.
    PEFT loads the result where all layers have one square grid. The relative error of each layer,
    or of all experts of a parameter, is measured and printed.
    """
    from gralora.adapters.combine import combine as run

    with counted("layers") as progress:
        result = run(
            adapters,
            out,
            weights=weights,
            rank=rank,
            k=k,
            overwrite=overwrite,
            progress=progress,
        )
    if not result.peft_loads:
        why = _EXPERTS if result.parameters else _FOR_PEFT
        click.echo(f"gralora combine: {why}", err=True)
    if as_json:
        emit(_report(result))
    else:
        _print(result)


def _report(result: Combined) -> dict[str, object]:
    return {
        "directory": str(result.directory),
        "peft": result.peft_loads,
        "layers": {
            name: {
                "r": spec.r,
                "hybrid_r": spec.hybrid_r,
                "k_out": spec.k_out,
                "k_in": spec.k_in,
                "relative_error": _finite(result.errors[name]),
            }
            for name, spec in result.specs.items()
        },
    }


def _finite(error: float) -> float | None:
    """The error, or None for what JSON has no number for."""
    return error if math.isfinite(error) else None


def _print(result: Combined) -> None:
    from rich.console import Console
    from rich.table import Table

    from gralora.adapters import words

    table = Table()
    for column in ("layer", "r", "k", "relative error"):
        named = column == "layer"
        table.add_column(
            column,
            justify="left" if named else "right",
            overflow="fold" if named else "ignore",
            no_wrap=not named,
        )
    for name, spec in result.specs.items():
        error = f"{result.errors[name]:.2g}"
        table.add_row(literal(name), words.rank(spec), words.grid(spec), error)
    Console(stderr=True).print(table)
    worst = max(result.errors, key=result.errors.__getitem__)
    click.echo(
        f"{shown(str(result.directory))}: {plural(len(result.specs), 'layer')}, largest "
        f"relative error {result.errors[worst]:.2g} ({shown(worst)})"
    )
