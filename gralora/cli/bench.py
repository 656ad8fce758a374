"""``gralora bench``, whose options are those of the suites."""

from __future__ import annotations

import click


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure adapters on this machine, beside the frozen layer."""
    from gralora.bench.command import main as run
    from gralora.bench.kernels_suite import KERNELS
    from gralora.bench.layer_suite import LAYER

    raise SystemExit(run(arguments or ("--help",), (LAYER, KERNELS), program="gralora bench"))
