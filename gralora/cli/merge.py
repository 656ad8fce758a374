"""``gralora merge``: adapters into a base model on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import dtypes, emit, examples, json_option, literal, plural
from gralora.cli.progress import merging
from gralora.injection.listing import shown

if TYPE_CHECKING:
    from gralora.checkpoints.merge import MergeReport

_LEFT = (
    "OUT was not made; shards that were finished are kept beside it, and the same command goes on "
    "from there"
)


@click.command(
    epilog=examples(
        "gralora merge base-model adapter merged",
        "gralora merge base-model adapter merged --device cuda --dtype bfloat16",
        "gralora merge base-model style:0.7 facts:0.5 both",
        "gralora merge merged adapter:-1 without --json",
    ),
    short_help="Merge adapters into a model on disk, shard by shard.",
)
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapters", metavar="ADAPTER[:WEIGHT]...", nargs=-1, required=True)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="Where weights are merged.")
@click.option(
    "--dtype",
    type=dtypes,
    help="Of all floating tensors; without it, each keeps its own.",
)
@click.option(
    "--layout",
    type=click.Choice(["linear", "conv1d"]),
    help="How square weights are stored, where config.json does not tell: as torch.nn.Linear does "
    "([out, in]), or as Conv1D of transformers.",
)
@click.option(
    "--with-code", is_flag=True, help="Copy Python files too, which are left out otherwise."
)
@json_option
@shell_errors("merge", writes="out", interrupted=_LEFT)
def merge(
    base: Path,
    adapters: tuple[str, ...],
    out: Path,
    device: str,
    dtype: str | None,
    layout: str | None,
    with_code: bool,
    as_json: bool,
) -> None:
    """Merge adapters into the model in folder BASE, as a new folder OUT.

    Works shard by shard, so that the model need not fit into memory. OUT appears when it is
    complete; after an interruption, the same command goes on where it was. With several adapters,
    or a weight, each adapter's change is multiplied by its weight (1 without one) and added up.
    """
    import torch

    from gralora.checkpoints.merge import merge_checkpoint

    with merging() as progress:
        report = merge_checkpoint(
            base,
            [parse_adapter(text) for text in adapters],
            out,
            device=device,
            dtype=None if dtype is None else getattr(torch, dtype),
            layout=layout,  # type: ignore[arg-type]
            with_code=with_code,
            progress=progress,
        )
    if as_json:
        emit(as_dict(report))
    else:
        _print(report)


def parse_adapter(text: str) -> tuple[str, float]:
    """Folder and weight from ``FOLDER`` or ``FOLDER:WEIGHT``; a folder may have a colon itself.

    Raises:
        FileNotFoundError: what follows the colon after an existing folder is no number.

    """
    folder, colon, number = text.rpartition(":")
    if not colon or not folder or Path(text).exists():
        return text, 1.0
    try:
        return folder, float(number)
    except ValueError:
        if not Path(folder).is_dir():
            return text, 1.0
    raise FileNotFoundError(
        f"ADAPTER must be an existing folder, got {text} (a weight after the colon must be a "
        f"number, as in {folder}:0.5)"
    )


def as_dict(report: MergeReport) -> dict[str, Any]:
    """The report as JSON has it."""
    return {
        "out": str(report.out),
        "layers": report.layers,
        "replaced": list(report.replaced),
        "added": list(report.added),
        "renamed": [{"adapter": old, "base": new} for old, new in report.renamed],
        "untied": report.untied,
        "copied": list(report.copied),
        "left_out": dict(report.left_out),
        "shards": report.shards,
        "resumed": report.resumed,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "gb_per_s": round(report.bytes / 1e9 / max(report.seconds, 1e-9), 3),
    }


def _print(report: MergeReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from gralora.adapters.words import size

    facts = as_dict(report)
    shards = plural(report.shards, "shard")
    merged = plural(report.layers, "weight")
    click.echo(f"{shown(str(report.out))}: {merged} merged, {shards}")
    title = literal(f"merged into {report.out}", "table.title")
    table = Table(show_header=False, title=title, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("weights merged into", str(report.layers))
    for what in ("replaced", "added"):
        if facts[what]:
            table.add_row(f"tensors {what}", literal(", ".join(facts[what])))
    for rule in facts["renamed"]:
        ways = f"{rule['adapter'] or 'no prefix'} is {rule['base'] or 'no prefix'} in the base"
        table.add_row("names", literal(ways))
    if report.untied:
        table.add_row("output head", "no longer tied to the embedding")
    resumed = f", {report.resumed} of them from an earlier run" if report.resumed else ""
    table.add_row("shards", f"{report.shards}{resumed}")
    rate = size(round(report.bytes / max(report.seconds, 1e-9)))
    table.add_row("read", f"{size(report.bytes)} in {report.seconds:.2f} s ({rate}/s)")
    table.add_row("copied", literal(", ".join(report.copied) or "nothing"))
    console = Console(stderr=True)
    console.print(table)
    for name, reason in report.left_out.items():
        console.print(literal(f"left out: {name} ({reason})"), soft_wrap=True)
