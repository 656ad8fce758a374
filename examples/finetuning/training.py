"""The training loop, and the loss on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetuning.errors import FinetuneError

WARM_UP_SHARE = 0.1
LARGEST_GRADIENT = 1.0
_DISPLAY_SECONDS = 0.2

Display = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Trainer:
    """A model, what of it trains, and how it computes.

    Attributes:
        model: a causal language model of transformers.
        parameters: the trained ones.
        batch: windows a step.
        lr: the highest learning rate.
        autocast: compute dtype where it differs from the parameters'; None for theirs.

    """

    model: nn.Module
    parameters: list[nn.Parameter]
    batch: int
    lr: float
    autocast: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.parameters[0].device

    def precision(self) -> AbstractContextManager[object]:
        """The context in which the model computes."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy of each token of ``ids [batch, length]`` given those before it."""
        ids = ids.to(self.device)
        with self.precision():
            loss: Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss

    @torch.no_grad()
    def held_out_loss(self, windows: Tensor) -> float:
        """Mean loss over ``windows [count, length]``, each token once."""
        self.model.eval()
        sums = [self.loss(ids) * len(ids) for ids in windows.split(self.batch)]
        return torch.stack(sums).double().sum().item() / len(windows)


@dataclass
class History:
    """What happened, step by step.

    Attributes:
        losses: of each step, before its update.
        held_out: number of steps taken, and the held-out loss then.
        seconds: of the steps alone.
        cpu_seconds: of all threads, likewise; on a CPU far below `seconds` times their number
            where other programs took their time.
        tokens: trained on.

    """

    losses: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Rate of the step (from 0): linear warm-up, then half a cosine down to zero after the last."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up + 1) / (steps - warm_up + 1)))


def train(
    trainer: Trainer, batches: Iterator[Tensor], steps: int, held_out: Tensor, display: Display
) -> History:
    """Take `steps` AdamW steps; measure the held-out loss before, halfway and after.

    Args:
        trainer: the model is trained in place.
        batches: int64 ``[batch, length]`` each.
        steps: how many.
        held_out: int64 ``[windows, length]``.
        display: called now and then with steps taken, latest loss and tokens per second.

    Raises:
        FinetuneError: the loss is no longer a number.

    """
    # Weight decay would pull the factors to zero, not the weight to where it was pretrained.
    optimizer = torch.optim.AdamW(trainer.parameters, lr=trainer.lr, weight_decay=0.0)
    history = History(held_out={0: trainer.held_out_loss(held_out)})
    losses: list[Tensor] = []
    shown = -math.inf
    for step in range(steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        ids = next(batches)
        losses.append(_step(trainer, optimizer, ids, learning_rate(step, steps, trainer.lr)))
        # Reading a loss waits for the GPU, so not every step does.
        if time.perf_counter() - shown > _DISPLAY_SECONDS or step == steps - 1:
            latest = losses[-1].item()
            shown = time.perf_counter()
            if not math.isfinite(latest):
                raise FinetuneError(f"the loss became {latest} at step {step + 1}; lower --lr")
        history.seconds += time.perf_counter() - start
        history.cpu_seconds += time.process_time() - cpu_start
        history.tokens += ids.numel()
        display(step + 1, latest, history.tokens / history.seconds)
        if step + 1 in (steps // 2, steps):
            history.held_out[step + 1] = trainer.held_out_loss(held_out)
    history.losses = torch.stack(losses).tolist()
    return history


def _step(trainer: Trainer, optimizer: torch.optim.Optimizer, ids: Tensor, lr: float) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = lr
    trainer.model.train()
    loss = trainer.loss(ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.parameters, LARGEST_GRADIENT)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
