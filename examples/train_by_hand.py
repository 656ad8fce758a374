"""Put GraLoRA adapters into a pretrained model by hand and take ten optimiser steps.

    python examples/train_by_hand.py

SmolLM2-135M learns from the source of Python's standard library; a module that it is not trained
on shows the loss before and after.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import time
from pathlib import Path
from typing import Any

import smollm2
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from gralora.nn import GraLoRALinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRAIN_MODULES = ("argparse", "ast", "dataclasses", "inspect", "logging", "pathlib", "typing")
HELD_OUT_MODULE = "tarfile"
HELD_OUT_WINDOWS = 8


def add_adapters(model: nn.Module, r: int, k: int) -> list[nn.Parameter]:
    """Freeze ``model``, give each projection an adapter, return what is left to train."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if child in PROJECTIONS:
            setattr(model.get_submodule(parent), child, GraLoRALinear.from_linear(module, r=r, k=k))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def source_tokens(tokenizer: Any, *modules: str) -> Tensor:
    """Return the source of standard-library modules as one int64 row of token ids."""
    text = "\n".join(inspect.getsource(importlib.import_module(name)) for name in modules)
    return torch.tensor(tokenizer(text).input_ids)


def random_windows(tokens: Tensor, count: int, length: int) -> Tensor:
    """Return ``[count, length]`` token ids, cut from ``tokens`` at random places."""
    starts = torch.randint(len(tokens) - length + 1, (count,)).tolist()
    return torch.stack([tokens[start : start + length] for start in starts])


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean cross-entropy of each token of ``ids [batch, length]`` given those before."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


@torch.no_grad()
def held_out_loss(model: nn.Module, windows: Tensor) -> float:
    """Return the mean loss over ``windows [count, length]``, one at a time to spare memory."""
    return sum(next_token_loss(model, ids).item() for ids in windows.split(1)) / len(windows)


def train(
    model: nn.Module, parameters: list[nn.Parameter], tokens: Tensor, options: argparse.Namespace
) -> float:
    """Take ``options.steps`` AdamW steps on random windows of ``tokens``; return the seconds."""
    optimizer = torch.optim.AdamW(parameters, lr=options.lr)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress("training", *columns, TextColumn("loss {task.fields[loss]}")) as progress:
        task = progress.add_task("training", total=options.steps, loss="")
        start = time.perf_counter()
        for _ in range(options.steps):
            ids = random_windows(tokens, options.batch, options.seq_len).to(options.device)
            loss = next_token_loss(model, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress.update(task, advance=1, loss=f"{loss.item():.3f}")
        return time.perf_counter() - start


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps (%(default)s)")
    parser.add_argument("-r", type=int, default=16, help="rank, a multiple of k (%(default)s)")
    parser.add_argument("-k", type=int, default=2, help="grid; divides every width (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (%(default)s)")
    parser.add_argument("--device", type=torch.device, default=device, help="(%(default)s)")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens a window (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="windows a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--cache", type=Path, default=smollm2.default_cache(), help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Load, adapt, measure, train, measure again."""
    options = parse_options()
    console = Console()
    torch.manual_seed(options.seed)

    # On a GPU the frozen weights are bf16; the adapters and their gradients stay fp32.
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    try:
        with console.status("fetching SmolLM2-135M-Instruct"):
            weights = smollm2.fetch(options.cache)
        model, tokenizer = smollm2.load(weights, options.device, dtype)
    except smollm2.SmolLM2Error as error:
        raise SystemExit(f"error: {error}") from error

    parameters = add_adapters(model, options.r, options.k)
    trainable = sum(parameter.numel() for parameter in parameters)
    everything = sum(parameter.numel() for parameter in model.parameters())

    held_out = source_tokens(tokenizer, HELD_OUT_MODULE)
    windows = random_windows(held_out, HELD_OUT_WINDOWS, options.seq_len).to(options.device)
    before = held_out_loss(model, windows)
    seconds = train(model, parameters, source_tokens(tokenizer, *TRAIN_MODULES), options)
    after = held_out_loss(model, windows)

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("held-out loss before", f"{before:.4f}")
    table.add_row("held-out loss after", f"{after:.4f}")
    table.add_row("trainable parameters", f"{trainable:,} ({trainable / everything:.1%})")
    table.add_row("tokens/s", f"{options.steps * options.batch * options.seq_len / seconds:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
