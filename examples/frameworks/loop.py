"""A training loop of accelerate: on one device or many, with checkpoints that it goes on from."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from finetuning.errors import FinetuneError
from finetuning.report import progress
from finetuning.training import LARGEST_GRADIENT, learning_rate
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from frameworks import checkpoints

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass
class History:
    """What happened in all steps so far, also in those before a resume.

    Attributes:
        losses: of each step, the mean over processes.
        held_out: number of steps taken, and the loss on held-out batches then.
        seconds: of the steps in this process.

    """

    losses: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What accelerate puts into a checkpoint."""
        return {"losses": self.losses, "held_out": self.held_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        self.losses, self.held_out = state["losses"], state["held_out"]


class InOrder(Dataset[Batch]):
    """Examples in an order that `seed` alone decides: all of them, then again in another order.

    Args:
        columns: each ``[examples, ...]``.
        count: length of the whole order.
        seed: of the order.

    """

    def __init__(self, columns: Batch, count: int, seed: int) -> None:
        self._columns = columns
        generator = torch.Generator().manual_seed(seed)
        examples = len(next(iter(columns.values())))
        rounds = -(-count // examples)
        order = [torch.randperm(examples, generator=generator) for _ in range(rounds)]
        self._order = torch.cat(order)[:count]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> Batch:
        return {name: column[self._order[position]] for name, column in self._columns.items()}


def start(options: argparse.Namespace) -> Accelerator:
    """Accelerate on the device and with the precision of the options."""
    return Accelerator(
        cpu=options.device.type == "cpu",
        mixed_precision="bf16" if options.dtype == torch.bfloat16 else "no",
    )


def train(
    accelerator: Accelerator,
    model: nn.Module,
    loss: Loss,
    columns: Batch,
    held_out: Sequence[Batch],
    options: argparse.Namespace,
    checkpoint: Path | None,
) -> History:
    """Take the steps of `options`, or those that are left after `checkpoint`.

    Args:
        accelerator: from :func:`start`.
        model: what requires gradients is trained, in place.
        loss: of the model on a batch, 0-dim.
        columns: examples to train on, each tensor ``[examples, ...]``.
        held_out: batches for the loss before and after.
        options: of the run.
        checkpoint: folder to go on from.

    Raises:
        FinetuneError: the loss is no longer a number.

    """
    # Weight decay would pull the factors to zero, not the weight to where it was pretrained.
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=options.lr, weight_decay=0.0
    )
    examples = options.steps * options.batch * accelerator.num_processes
    loader = DataLoader(
        InOrder(columns, examples, options.seed),
        batch_size=options.batch,
        # Of its own, so that starting it takes no number from the generator of the losses.
        generator=torch.Generator(),
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    checkpoints.keep_adapters_only(accelerator)
    history = History()
    accelerator.register_for_checkpointing(history)
    if checkpoint is None:
        history.held_out[0] = mean_loss(accelerator, model, loss, held_out)
    else:
        accelerator.load_state(str(checkpoint))
        loader = accelerator.skip_first_batches(loader, len(history.losses))

    console = Console(quiet=not accelerator.is_main_process)
    with progress(console, options.steps, "examples/s") as display:
        for step, batch in enumerate(loader, len(history.losses)):
            begin = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, options.steps, options.lr)
            model.train()
            value = loss(model, batch)
            accelerator.backward(value)
            accelerator.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
            history.losses.append(accelerator.reduce(value.detach(), "mean").item())
            if not math.isfinite(history.losses[-1]):
                raise FinetuneError(
                    f"the loss became {history.losses[-1]} at step {step + 1}; lower --lr"
                )
            seconds = time.perf_counter() - begin
            history.seconds += seconds
            display(step + 1, history.losses[-1], options.batch / seconds)
            if (step + 1) % options.save_every == 0:
                checkpoints.save(accelerator, options.output / f"checkpoint-{step + 1}")
    history.held_out[len(history.losses)] = mean_loss(accelerator, model, loss, held_out)
    return history


@torch.no_grad()
def mean_loss(
    accelerator: Accelerator, model: nn.Module, loss: Loss, batches: Sequence[Batch]
) -> float:
    """The loss of `model` in evaluation mode, the mean over batches of equal size."""
    model.eval()
    device = accelerator.device
    values = [loss(model, {n: t.to(device) for n, t in batch.items()}) for batch in batches]
    return torch.stack(values).double().mean().item()
