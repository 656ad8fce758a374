"""Draws result files: ``python benchmarks/plot.py benchmarks/results/*.json --out DIR``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import installed  # noqa: F401 - the installed package, not the sources

from gralora.bench.plots import save_plot


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one PNG beside each file's name; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks/plot.py", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="results, as JSON")
    parser.add_argument("--out", type=Path, default=Path(), help="folder (default: this one)")
    options = parser.parse_args(arguments)
    for path in options.files:
        record = json.loads(path.read_text(encoding="utf-8"))
        try:
            print(save_plot(record, options.out / f"{path.stem}.png"))
        except ImportError as error:
            parser.error(f"needs matplotlib (pip install matplotlib): {error}")
        except ValueError as error:
            parser.error(f"{path}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
