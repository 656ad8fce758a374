"""``gralora inspect``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import emit, examples, json_option, plural
from gralora.cli.progress import counted
from gralora.injection.listing import shown

if TYPE_CHECKING:
    from gralora.adapters.inspection import AdapterReport, LayerReport


@click.command(
    "inspect",
    epilog=examples(
        "gralora inspect adapter",
        "gralora inspect adapter --json > adapter.json",
        "gralora inspect adapter --plot blocks.png",
    ),
    short_help="Show ranks, norms and blocks of an adapter.",
)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Also draw the norm of each block of each layer (needs matplotlib).",
)
@json_option
@shell_errors("inspect", writes="plot")
def inspect(adapter: Path, plot: Path | None, as_json: bool) -> None:
    """Show what ADAPTER consists of, and what its training has made of each layer.

    For each layer: its grid, rank and parameters, the Frobenius norm of ΔW, how much the norms of
    its blocks differ (largest over smallest), and the effective rank of ΔW: by the entropy of its
    singular values, and how many of them hold 99% of its energy. All of it is exact.
    """
    if plot is not None:
        from gralora.adapters.heatmap import check_plot

        check_plot(plot)
    report = _measure(adapter)
    if plot is not None:
        from gralora.adapters.heatmap import save_heatmap

        written = save_heatmap(report, plot)
        click.echo(f"plot written to {shown(str(written))}", err=True)
    if as_json:
        emit(_as_json(report))
    else:
        _print(report)


def _measure(adapter: Path) -> AdapterReport:
    from gralora.adapters.inspection import inspect_adapter

    with counted("layers") as progress:
        return inspect_adapter(adapter, progress=progress)


def _print(report: AdapterReport) -> None:
    from rich.console import Console

    from gralora.cli.layer_table import print_layers

    print_layers(report, _headline(report), Console())


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
