"""``gralora import-lora``."""

from __future__ import annotations

from pathlib import Path

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import (
    Blocks,
    emit,
    examples,
    json_option,
    overwrite_option,
    parse_blocks,
    plural,
)
from gralora.cli.progress import counted
from gralora.injection.listing import shown


@click.command(
    "import-lora",
    epilog=examples(
        "gralora import-lora lora adapter --k 4",
        "gralora import-lora lora adapter --k 2,4",
    ),
    short_help="Write a LoRA as a GraLoRA adapter, exactly.",
)
@click.argument("lora", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--k",
    callback=parse_blocks,
    required=True,
    metavar="K",
    help="Blocks per axis, or K_OUT,K_IN for a rectangle.",
)
@overwrite_option
@json_option
@shell_errors("import-lora", writes="out")
def import_lora(lora: Path, out: Path, k: Blocks, overwrite: bool, as_json: bool) -> None:
    """Write a LoRA of PEFT to OUT as a GraLoRA adapter that computes the same.

    A LoRA of rank r becomes an adapter of rank k*r, number by number, ready to be trained further.
    Variants that compute something else (DoRA, PiSSA's start and others) are refused.
    """
    from gralora.adapters.import_lora import import_lora as run

    with counted("layers") as progress:
        result = run(lora, out, k=k, overwrite=overwrite, progress=progress)
    pairs = sorted({(result.ranks[name], spec.r) for name, spec in result.specs.items()})
    if as_json:
        report = {
            "directory": str(result.directory),
            "layers": {
                name: {
                    "lora_rank": result.ranks[name],
                    "r": spec.r,
                    "k_out": spec.k_out,
                    "k_in": spec.k_in,
                    "alpha": spec.alpha,
                }
                for name, spec in result.specs.items()
            },
        }
        emit(report)
        return
    ranks = ", ".join(f"LoRA rank {rank} as rank {r}" for rank, r in pairs)
    click.echo(f"{shown(str(result.directory))}: {plural(len(result.specs), 'layer')}, {ranks}")
