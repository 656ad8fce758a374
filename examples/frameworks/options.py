"""The command lines of the examples of frameworks."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from finetuning import arguments
from finetuning import options as shared
from finetuning.errors import FinetuneError
from finetuning.failures import in_one_line


def parser(
    description: str, output: str, *, steps: int, batch: int, held_out: int = 16, lr: float = 1e-3
) -> argparse.ArgumentParser:
    """Return a parser with what every example takes.

    Args:
        description: first line of ``--help``.
        output: default folder of results.
        steps: default number of optimiser steps.
        batch: default number of examples a step.
        held_out: default number of examples that are never trained on.
        lr: default learning rate.

    """
    result = argparse.ArgumentParser(description=description)
    adapter = result.add_argument_group("adapter")
    shared.add_rank(adapter)
    adapter.add_argument(
        "-k", type=arguments.positive, default=2, help="grid; divides every width (%(default)s)"
    )
    adapter.add_argument(
        "--alpha", type=arguments.positive, help="update is scaled by alpha / r (2 r)"
    )
    training = result.add_argument_group("training")
    training.add_argument(
        "--lr",
        type=arguments.positive_float,
        default=lr,
        help="highest learning rate (%(default)s)",
    )
    shared.add_steps(training, steps)
    training.add_argument(
        "--batch", type=arguments.positive, default=batch, help="examples a step (%(default)s)"
    )
    training.add_argument(
        "--held-out",
        type=arguments.positive,
        default=held_out,
        metavar="COUNT",
        help="examples that are never trained on, at most (%(default)s)",
    )
    training.add_argument("--seed", type=arguments.numpy_seed, default=0, help="(%(default)s)")
    machine = result.add_argument_group("machine")
    machine.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="CUDA_VISIBLE_DEVICES chooses among several GPUs (%(default)s)",
    )
    shared.add_dtype(machine)
    results = result.add_argument_group("results")
    results.add_argument("--output", type=Path, default=Path(output), help="folder (%(default)s)")
    results.add_argument(
        "--save-every",
        type=arguments.positive,
        default=50,
        metavar="STEPS",
        help="steps between two checkpoints (%(default)s)",
    )
    results.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --output"
    )
    return result


LESS_MEMORY = "a smaller --batch or --seq-len, --grad-checkpointing"


def add_window(result: argparse.ArgumentParser) -> None:
    """Add what language models take further."""
    group = result.add_argument_group("memory")
    shared.add_seq_len(group, "tokens of an example, at most")
    shared.add_grad_checkpointing(group)


def parse(result: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line; argparse ends the program where it is wrong.

    ``device`` becomes a ``torch.device`` and ``dtype`` a ``torch.dtype``.
    """
    options = result.parse_args()
    options.device = torch.device(options.device)
    options.alpha = options.alpha or 2 * options.r
    options.dtype = shared.compute_dtype(options)
    return options


def start(
    result: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], less_memory: str
) -> None:
    """Read the command line and run; end with one line where its user can mend what is wrong.

    Args:
        result: the parser.
        run: takes its options.
        less_memory: options that need less of it.

    """
    options = parse(result)
    with in_one_line(less_memory, "--resume goes on from the last checkpoint"):
        run(options)


def check(options: argparse.Namespace, *packages: str) -> None:
    """Raise FinetuneError where the machine has not what the run needs."""
    shared.check_device(options.device)
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise FinetuneError(
                f'this example needs {package}: run `pip install ".[frameworks]"` in a copy of the '
                "repository"
            )
