"""``gralora inspect``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gralora.cli.errors import CommandError, shell_errors
from gralora.cli.options import examples, literal, plural
from gralora.injection.listing import shown

if TYPE_CHECKING:
    from gralora.adapters.inspection import AdapterReport, LayerReport

# Of tables that go into a file or a pipe, which have no width of their own.
_WIDTH = 140


@click.command(
    "inspect",
    epilog=examples(
        "gralora inspect adapter",
        "gralora inspect adapter --json > adapter.json",
        "gralora inspect adapter --plot blocks.png",
    ),
)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Also draw the norm of each block of each layer (needs matplotlib).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
@shell_errors("inspect")
def inspect(adapter: Path, plot: Path | None, as_json: bool) -> None:
    """Show what ADAPTER consists of, and what its training has made of each layer.

    For each layer: its grid, rank and parameters, the Frobenius norm of ΔW, how much the norms of
    its blocks differ (largest over smallest), and the effective rank of ΔW: by the entropy of its
    singular values, and how many of them hold 99% of its energy. All of it is exact.
    """
    if plot is not None:
        from gralora.adapters.heatmap import check_plot

        try:
            check_plot(plot)
        except ImportError as error:
            raise CommandError("inspect", str(error)) from None
    report = _measure(adapter)
    if plot is not None:
        from gralora.adapters.heatmap import save_heatmap

        written = save_heatmap(report, plot)
        click.echo(f"plot written to {shown(str(written))}", err=True)
    if as_json:
        import json

        click.echo(json.dumps(_as_json(report), indent=2))
    else:
        _print(report)


def _measure(adapter: Path) -> AdapterReport:
    from rich.console import Console
    from rich.progress import Progress

    from gralora.adapters.inspection import inspect_adapter

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("layers")

        def advance(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        return inspect_adapter(adapter, progress=advance)


def _print(report: AdapterReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=literal(_headline(report), "table.title"), title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("M x N", "k", "r", "parameters", "‖ΔW‖", "blocks max/min"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("rank at most", "entropy", "99% energy"):
        table.add_column(column, justify="right")
    for name, layer in report.layers.items():
        table.add_row(
            literal(name),
            f"{layer.out_features} x {layer.in_features}",
            _grid(layer),
            f"{layer.spec.r} + {layer.spec.hybrid_r}" if layer.spec.hybrid_r else str(layer.spec.r),
            f"{layer.parameters:,}",
            f"{layer.norm:.4g}",
            f"{layer.spread:.3g}",
            str(layer.largest_rank),
            f"{layer.entropy_rank:.1f}",
            str(layer.energy_rank),
        )
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def _headline(report: AdapterReport) -> str:
    base = f" on {report.base_model}" if report.base_model else ""
    others = (
        f", {report.other_parameters:,} of them in biases and whole modules"
        if report.other_parameters
        else ""
    )
    return (
        f"{report.directory}{base}: {plural(len(report.layers), 'layer')}, "
        f"{report.parameters:,} parameters{others}, ‖ΔW‖ {report.norm:.4g}"
    )


def _grid(layer: LayerReport) -> str:
    k_out, k_in = layer.spec.k_out, layer.spec.k_in
    return str(k_in) if k_in == k_out else f"{k_out} x {k_in}"


def _as_json(report: AdapterReport) -> dict[str, Any]:
    return {
        "directory": str(report.directory),
        "base_model": report.base_model,
        "parameters": report.parameters,
        "other_parameters": report.other_parameters,
        "norm": report.norm,
        "layers": {name: _layer_as_json(layer) for name, layer in report.layers.items()},
    }


def _layer_as_json(layer: LayerReport) -> dict[str, Any]:
    return {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "r": layer.spec.r,
        "k_out": layer.spec.k_out,
        "k_in": layer.spec.k_in,
        "hybrid_r": layer.spec.hybrid_r,
        "alpha": layer.spec.alpha,
        "scaling": layer.spec.scaling,
        "dtype": layer.dtype,
        "parameters": layer.parameters,
        "norm": layer.norm,
        "block_norms": layer.block_norms,
        "block_spread": layer.spread if math.isfinite(layer.spread) else None,
        "largest_rank": layer.largest_rank,
        "entropy_rank": layer.entropy_rank,
        "energy_rank": layer.energy_rank,
    }
