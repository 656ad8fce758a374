"""The command line: ``gralora`` and ``python -m gralora``.

Each command is a file of its own, which imports what is slow to import only when it runs.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from gralora.cli.bench import bench
from gralora.cli.combine import combine
from gralora.cli.convert import convert
from gralora.cli.export_lora import export_lora
from gralora.cli.import_lora import import_lora
from gralora.cli.info import info
from gralora.cli.inspect import inspect
from gralora.cli.merge import merge


class _Program(click.Group):
    """The commands, whose words any terminal can show."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as click does, with escapes for characters that an output's encoding lacks."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gralora", prog_name="gralora")
def main() -> None:
    """Granular low-rank adapters for PyTorch."""


for _command in (info, bench, combine, convert, export_lora, import_lora, inspect, merge):
    main.add_command(_command)
