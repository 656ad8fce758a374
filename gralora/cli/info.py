"""``gralora info``."""

from __future__ import annotations

import re
from typing import Any

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import emit, examples, json_option

# The names that the library has for the words after --explain.
_TYPED = {
    "in_features": "N", "out_features": "M", "r": "R", "k": "K", "k_in": "K", "k_out": "K",
    "dtype": "DTYPE",
}  # fmt: skip


@click.command(
    epilog=examples(
        "gralora info",
        "gralora info --json",
        "gralora info --explain 8192 4096 4096 64 4 bf16",
    )
)
@json_option
@click.option(
    "--explain",
    "shape",
    nargs=6,
    type=(int, int, int, int, int, str),
    metavar="T N M R K DTYPE",
    help="Print which kernels a layer takes on a GPU, and why: tokens, in- and out-features, "
    "rank, blocks per axis, bf16 | fp16 | fp32 | fp64.",
)
@click.option("--bias", is_flag=True, help="With --explain: the layer has a bias.")
@click.option("--dropout", is_flag=True, help="With --explain: dropout acts.")
@shell_errors("info")
def info(
    as_json: bool, shape: tuple[int, int, int, int, int, str] | None, bias: bool, dropout: bool
) -> None:
    """Show what was built, what runs and what is missing."""
    from gralora.info import collect

    if shape is None and (bias or dropout):
        wanted = "--bias" if bias else "--dropout"
        raise click.UsageError(f"{wanted} must come with --explain")
    if shape is not None:
        _explain(shape, as_json, bias=bias, dropout=dropout)
        return
    facts = collect()
    if as_json:
        emit(facts)
    else:
        _print_info(facts)


def _explain(
    shape: tuple[int, int, int, int, int, str], as_json: bool, *, bias: bool, dropout: bool
) -> None:
    from gralora.explain import explain

    try:
        steps = explain(*shape, bias=bias, dropout=dropout)
    except ValueError as error:
        raise click.BadParameter(_as_typed(str(error)), param_hint="--explain") from error
    if as_json:
        emit({"steps": steps})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="T {} N {} M {} r {} k {} {}".format(*shape), title_justify="left")
    for column in ("step", "path", "reason"):
        table.add_column(column)
    for step in steps:
        table.add_row(step["step"], step["path"], step["reason"])
    Console().print(table)


def _as_typed(message: str) -> str:
    """A refusal with the command line's names for what was given."""
    text = message.removeprefix("explain: ")
    for name, typed in _TYPED.items():
        text = re.sub(rf"\b{name}\b", typed, text)
    return text


def _print_info(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=f"gralora {facts['version']}", title_justify="left")
    table.add_row("torch", f"{facts['torch']} (built for {facts['torch_built']})")
    if facts["cuda_built"]:
        architectures = ", ".join(facts["cuda_architectures"])
        table.add_row("CUDA kernels", f"CUDA {facts['cuda_version']} for {architectures}")
    else:
        table.add_row("CUDA kernels", "not built")
    for gpu in facts["gpus"]:
        table.add_row(
            f"GPU {gpu['index']}",
            f"{gpu['name']}, capability {gpu['capability']}, {gpu['memory_gib']} GiB",
        )
    if not facts["gpus"]:
        table.add_row("GPUs", "none visible")
    present = [name for name, here in facts["packages"].items() if here]
    table.add_row("also installed", ", ".join(present) or "none of the companions")
    console = Console()
    console.print(table)
    for note in facts["notes"]:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
