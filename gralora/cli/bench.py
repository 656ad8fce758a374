"""``gralora bench``, whose options are those of the suites."""

from __future__ import annotations

import click


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    r"""Measure adapters on this machine, beside the frozen layer.

    \b
    Examples:
      gralora bench layer
      gralora bench layer --preset llama-3.1-8b --tokens 512,8192 --rk 64:4 --json layer.json
      gralora bench kernels --path aten,sm80
      gralora bench show layer.json
    """
    from gralora.bench.command import main as run
    from gralora.bench.kernels_suite import KERNELS
    from gralora.bench.layer_suite import LAYER

    raise SystemExit(run(arguments or ("--help",), (LAYER, KERNELS), program="gralora bench"))
