"""The command line: ``gralora`` and ``python -m gralora``."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import gralora


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gralora.__version__, prog_name="gralora")
def main() -> None:
    """Granular low-rank adapters for PyTorch."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
def info(as_json: bool) -> None:
    r"""Show what was built, what runs and what is missing.

    \b
    Examples:
      gralora info
      gralora info --json
    """
    from gralora.info import collect

    facts = collect()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_info(facts)


def _print_info(facts: dict[str, Any]) -> None:
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
