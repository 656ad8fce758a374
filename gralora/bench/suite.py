"""What a suite of benchmarks is: its options, its measurements and its tables."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from gralora.bench.case import DTYPES, Case
from gralora.bench.harness import Progress

Record = dict[str, Any]

FEWEST_ROUNDS = 9


@dataclass(frozen=True)
class Context:
    """What a running suite gets.

    ``save(record)`` keeps what there is so far: a run that is cut off loses nothing.
    """

    device: torch.device
    rounds: int
    on_progress: Progress
    save: Callable[[Record], None]


Run = Callable[[Context], Record]


@dataclass(frozen=True)
class Suite:
    """A suite, as the command line knows it.

    Attributes:
        name: the command.
        help: one line.
        defaults: values of options that were not given, by device (``"cpu"`` and ``"cuda"``).
        add_options: the options beside those that all suites have.
        prepare: checks the options and returns what measures; raises ValueError with a sentence.
        show: prints a record's tables; the last argument asks for the short form.
    """

    name: str
    help: str
    defaults: Mapping[str, Mapping[str, Any]]
    add_options: Callable[[ArgumentParser], None]
    prepare: Callable[[Namespace], Run]
    show: Callable[[Record, Console, bool], None]


def add_mode_option(parser: ArgumentParser) -> None:
    """``--mode``, for suites that can take both device and wall time."""
    parser.add_argument(
        "--mode",
        choices=("graph", "eager", "both"),
        help="graph: device time of CUDA-graph replays; eager: wall time "
        "(default: graph on cuda, eager on cpu)",
    )


def modes_of(options: Namespace) -> list[str]:
    """The modes that ``--mode`` asks for.

    Raises:
        ValueError: graphs on a CPU.
    """
    mode = options.mode or ("graph" if options.device == "cuda" else "eager")
    if options.device == "cpu" and mode != "eager":
        raise ValueError(f"mode: a CPU has eager alone, got {mode}")
    return ["graph", "eager"] if mode == "both" else [mode]


def check_grid(case: Case) -> None:
    """Raise ValueError where the grid does not cut the layer into equal blocks."""
    if case.in_features % case.grid or case.out_features % case.grid:
        raise ValueError(
            f"rk: k must divide both features, got {case.in_features}x{case.out_features}, "
            f"k={case.grid}"
        )


def choose_names(
    option: str, text: str | None, known: Sequence[str], usual: Sequence[str]
) -> list[str]:
    """Read a list of names joined by commas; without one, the usual ones.

    Raises:
        ValueError: a name is not among the known ones.
    """
    if text is None:
        return list(usual)
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{option}: any of {','.join(known)}, got {','.join(unknown)}")
    return names


def check_common(options: Namespace) -> None:
    """Check the options of all suites.

    Raises:
        ValueError: no such device here, or too few rounds.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device")
    if options.rounds < FEWEST_ROUNDS:
        raise ValueError(f"rounds: at least {FEWEST_ROUNDS}, got {options.rounds}")


def add_common_options(parser: ArgumentParser) -> None:
    """The options that all suites have."""
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--rounds", type=int, help=f"interleaved, at least {FEWEST_ROUNDS}")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
