"""Benchmarks of gralora: ``python benchmarks/run.py SUITE``, or ``show FILE``.

Start it by its path, so that the installed package is measured and not the sources beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import installed
from host_suite import HOST
from merge_suite import MERGE
from model_suite import MODEL

from gralora.bench.command import main as run_command
from gralora.bench.kernels_suite import KERNELS
from gralora.bench.layer_suite import LAYER

SUITES = (KERNELS, LAYER, MODEL, HOST, MERGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command(
        sys.argv[1:] if arguments is None else arguments,
        SUITES,
        program="benchmarks/run.py",
        checkout=installed.ROOT,
    )


if __name__ == "__main__":
    sys.exit(main())
