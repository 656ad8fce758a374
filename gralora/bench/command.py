"""The command line of the benchmarks: reads options, runs one suite, keeps and shows its record."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from gralora.bench.environment import SCHEMA, environment, gpu_state, write_json
from gralora.bench.harness import Progress
from gralora.bench.report import console, show
from gralora.bench.suite import (
    Context,
    Record,
    Run,
    Suite,
    add_common_options,
    check_common,
)

# Options that say where results go, which is no condition of the measurement.
_NOT_SETTINGS = ("command", "json", "plot", "torch_device")


def main(
    arguments: Sequence[str], suites: Sequence[Suite], *, program: str, checkout: Path | None = None
) -> int:
    """Run one command.

    Args:
        arguments: of the command line, without the program.
        suites: those to choose from.
        program: its name in help and records.
        checkout: the sources whose commit the records name; None for an installed package.

    Returns:
        The exit status.
    """
    by_name = {suite.name: suite for suite in suites}
    parser = _parser(suites, program)
    options = parser.parse_args(arguments)
    if options.command == "show":
        return _show_files(options, by_name, parser)
    suite = by_name[options.command]
    _fill_defaults(options, suite)
    try:
        check_common(options)
        run = suite.prepare(options)
        if options.plot:
            _check_plotting()
    except ValueError as error:
        parser.error(str(error))
    if options.threads:
        torch.set_num_threads(options.threads)
    command = [program, *arguments]
    record = _measure(suite, run, options, environment(options.torch_device, command, checkout))
    show(record, console(), suite.show)
    if options.plot:
        from gralora.bench.plots import save_plot

        console().print(f"wrote {save_plot(record, options.plot)}", markup=False, highlight=False)
    return 0


def _parser(suites: Sequence[Suite], program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Benchmarks of gralora.")
    commands = parser.add_subparsers(dest="command", required=True)
    for suite in suites:
        command = commands.add_parser(suite.name, help=suite.help, description=suite.help)
        suite.add_options(command)
        add_common_options(command)
        command.add_argument("--json", type=Path, help="write the results there")
        command.add_argument("--plot", type=Path, help="draw them there as PNG (needs matplotlib)")
    shower = commands.add_parser("show", help="print result files")
    shower.add_argument("--short", action="store_true", help="one row for each layer")
    shower.add_argument("files", nargs="+", type=Path)
    return parser


def _show_files(
    options: argparse.Namespace, suites: dict[str, Suite], parser: argparse.ArgumentParser
) -> int:
    for path in options.files:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # no JSON, or no text
            parser.error(f"show: {path} must be a result file, as --json writes it")
        suite = record.get("suite") if isinstance(record, dict) else None
        if suite not in suites:
            parser.error(f"show: results of one of {', '.join(suites)}, got {suite!r} in {path}")
        show(record, console(), suites[suite].show, short=options.short)
    return 0


def _fill_defaults(options: argparse.Namespace, suite: Suite) -> None:
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name, value in suite.defaults[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.torch_device = torch.device(options.device)


def _check_plotting() -> None:
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ValueError(f"plot: needs matplotlib (pip install matplotlib): {error}") from error


def _measure(suite: Suite, run: Run, options: argparse.Namespace, found: Record) -> Record:
    device = options.torch_device
    head: Record = {
        "schema": SCHEMA,
        "suite": suite.name,
        "environment": found,
        "settings": {
            name: value
            for name, value in vars(options).items()
            if name not in _NOT_SETTINGS and value is not None
        },
    }

    # Clocks, power and temperature after each case, beside those of the start.
    states: list[dict[str, str] | None] = []

    def complete(measured: Record) -> Record:
        if device.type == "cuda":
            states.append(gpu_state(device))
        return {**head, **measured, "gpu_states": states}

    def save(measured: Record) -> None:
        if options.json:
            write_json(options.json, complete(measured))

    with _progress() as on_progress:
        record = complete(run(Context(device, options.rounds, on_progress, save)))
    if options.json:
        write_json(options.json, record)
    return record


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def on_progress(label: str, done: int, total: int) -> None:
            bar.update(task, description=label, completed=done, total=total)

        yield on_progress
