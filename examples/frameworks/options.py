"""The command lines of the examples of frameworks."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from finetuning import arguments
from finetuning.errors import FinetuneError
from finetuning.options import check_device


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
    adapter.add_argument(
        "-r", type=arguments.positive, default=16, help="rank, a multiple of k (%(default)s)"
    )
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
    training.add_argument(
        "--steps", type=arguments.positive, default=steps, help="optimiser steps (%(default)s)"
    )
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
    machine.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of frozen weights and activations; what trains is float32 (auto: bfloat16 on a "
        "GPU, float32 elsewhere)",
    )
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


def add_window(result: argparse.ArgumentParser) -> None:
    """Add what language models take further."""
    group = result.add_argument_group("memory")
    group.add_argument(
        "--seq-len",
        type=arguments.window,
        default=256,
        help="tokens of an example, at most (%(default)s)",
    )
    group.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="compute activations twice instead of keeping them: less memory, more time",
    )


def parse(result: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line; argparse ends the program where it is wrong.

    ``device`` becomes a ``torch.device`` and ``dtype`` a ``torch.dtype``.
    """
    options = result.parse_args()
    options.device = torch.device(options.device)
    options.alpha = options.alpha or 2 * options.r
    if options.dtype == "auto":
        options.dtype = "bfloat16" if options.device.type == "cuda" else "float32"
    options.dtype = getattr(torch, options.dtype)
    return options


def check(options: argparse.Namespace, *packages: str) -> None:
    """Raise FinetuneError where the machine has not what the run needs."""
    check_device(options.device)
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise FinetuneError(
                f'this example needs {package}: run `pip install ".[frameworks]"` in a copy of the '
                "repository"
            )
