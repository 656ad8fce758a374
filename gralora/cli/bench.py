"""``gralora bench``, whose options are those of the suites."""

from __future__ import annotations

import click

from gralora.cli.errors import shell_errors
from gralora.cli.options import examples

_WHAT = "Measure adapters on this machine, beside the frozen layer."
_SUITES = (
    "layer    one adapted layer: forward and training step",
    "kernels  each step of an adapter by itself",
    "show     print result files",
)


@click.command(
    # What follows the suite's name, --help too, is for the suite.
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
    no_args_is_help=True,
    options_metavar="",
    epilog=examples(
        "gralora bench layer",
        "gralora bench layer --shapes 4096x4096 --tokens 16,8192 --rk 64:4 --json layer.json",
        "gralora bench kernels --plot kernels.png",
        "gralora bench show layer.json",
        "gralora bench layer --help",
    ),
    short_help=_WHAT,
    help="\n".join([_WHAT, "", "\b", *_SUITES]),
)
@click.argument("suite", type=click.Choice(["layer", "kernels", "show"]))
@click.argument("arguments", metavar="[OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@shell_errors("bench", interrupted="with --json, what was measured until now is in its file")
def bench(suite: str, arguments: tuple[str, ...]) -> None:
    """Run one suite; its own parser reads what follows its name."""
    from gralora.bench.command import main as run
    from gralora.bench.kernels_suite import KERNELS
    from gralora.bench.layer_suite import LAYER

    try:
        status = run((suite, *arguments), (LAYER, KERNELS), program="gralora bench")
    except FileNotFoundError as error:
        if suite != "show":
            raise
        raise FileNotFoundError(f"no result file {error.filename}") from None
    raise SystemExit(status)
