"""``gralora export-lora``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import dtypes, emit, examples, json_option, overwrite_option, plural
from gralora.cli.progress import counted
from gralora.injection.listing import shown

if TYPE_CHECKING:
    from gralora.adapters.export_lora import LoraExport


@click.command(
    "export-lora",
    epilog=examples(
        "gralora export-lora adapter lora",
        "gralora export-lora adapter lora --dtype bfloat16",
        "vllm serve MODEL --enable-lora --max-lora-rank 64 --lora-modules mine=lora",
    ),
    short_help="Write an adapter as plain LoRA, exactly.",
)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=dtypes,
    help="Round the factors to this dtype. Without it every number is kept exactly.",
)
@overwrite_option
@json_option
@shell_errors("export-lora", writes="out")
def export_lora(
    adapter: Path, out: Path, dtype: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write the plain LoRA that computes the same as ADAPTER to OUT.

    No singular value decomposition, nothing is lost: the LoRA's rank is k*r, plus that of a
    hybrid's plain part. PEFT, vLLM and others load the result as any LoRA.
    """
    import torch

    from gralora.adapters.export_lora import export_lora as export

    wanted = None if dtype is None else getattr(torch, dtype)
    with counted("layers") as progress:
        result = export(adapter, out, dtype=wanted, overwrite=overwrite, progress=progress)
    if as_json:
        emit(_report(result))
    else:
        _print(result)


def _report(result: LoraExport) -> dict[str, Any]:
    return {
        "directory": str(result.directory),
        "layers": len(result.ranks),
        "rank": result.rank,
        "ranks": dict(result.ranks),
        "dtypes": list(result.dtypes),
        "max_lora_rank": result.max_lora_rank,
        "vllm": not result.obstacles,
        "obstacles": list(result.obstacles),
    }


def _print(result: LoraExport) -> None:
    counts: dict[int, int] = {}
    for rank in result.ranks.values():
        counts[rank] = counts.get(rank, 0) + 1
    ranks = ", ".join(
        f"{rank} ({plural(count, 'layer')})" for rank, count in sorted(counts.items())
    )
    click.echo(f"{shown(str(result.directory))}: LoRA of rank {ranks}, {', '.join(result.dtypes)}")
    if result.obstacles:
        for obstacle in result.obstacles:
            click.echo(f"vLLM cannot serve it: {obstacle}")
    else:
        click.echo(f"vLLM needs --max-lora-rank {result.max_lora_rank}")
