"""``gralora convert``."""

from __future__ import annotations

from pathlib import Path

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import emit, examples, json_option, overwrite_option, plural
from gralora.cli.progress import counted
from gralora.injection.listing import shown


@click.command(
    "convert",
    epilog=examples("gralora convert fork-adapter adapter", "gralora convert a b --json"),
    short_help="Rewrite an adapter of the authors' fork for PEFT.",
)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@overwrite_option
@json_option
@shell_errors("convert", writes="out")
def convert(adapter: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write an adapter of the GraLoRA authors' fork of PEFT to OUT in PEFT's own format.

    The fork writes the same tensors with another meaning of r and alpha, and PEFT would load them
    with a wrong scale. Anything but such an adapter is refused, with what to do instead.
    """
    from gralora.adapters.convert import convert as run

    with counted("steps") as progress:
        result = run(adapter, out, overwrite=overwrite, progress=progress)
    spec = result.spec
    if as_json:
        report = {
            "directory": str(result.directory),
            "layers": result.layers,
            "total_rank": result.total_rank,
            "r": spec.r,
            "hybrid_r": spec.hybrid_r,
            "k": spec.k_in,
            "alpha": spec.alpha,
        }
        emit(report)
        return
    click.echo(
        f"{shown(str(result.directory))}: {plural(result.layers, 'layer')}, "
        f"r={result.total_rank} of the fork is PEFT's r={spec.r} with hybrid_r={spec.hybrid_r}, "
        f"alpha={spec.alpha:g}"
    )
