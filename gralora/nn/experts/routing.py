"""Tokens to the experts that a router chose for them, and back.

Every token goes to ``top_k`` experts: ``S = T * top_k`` rows, sorted by expert, in which an
expert's own are next to each other. Both directions, and their gradients, are gathers and sums in a
fixed order: no two rows are added to one place at a time, so that equal inputs give equal bits.

A router may choose no expert, by a number outside of theirs: transformers writes the number beyond
the last for tokens that another process has the expert of. Such a choice keeps its row, among those
of the nearest expert, so that every product stays whole; the row is zero, and so is its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling


@dataclass(frozen=True)
class Routing:
    """Which row stands for which token and expert.

    Attributes:
        order: ``[S]``, for each row its place among the router's choices, token by token.
        places: ``[S]``, for each of those choices its row.
        experts: ``[S]``, the expert of each row, ascending.
        absent: ``[S]``, whether the row stands for no expert.
        ends: ``[E]`` int32, where each expert's rows end.
        top_k: experts for each token.

    """

    order: Tensor
    places: Tensor
    experts: Tensor
    absent: Tensor
    ends: Tensor
    top_k: int

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Routing:
        """Routing of ``chosen [T, top_k]``, numbers of experts; others than theirs choose none."""
        numbers_by_row, order = torch.sort(chosen.reshape(-1), stable=True)
        by_row = numbers_by_row.clamp(0, experts - 1)
        absent = by_row != numbers_by_row
        places = torch.empty_like(order)
        places[order] = torch.arange(order.shape[0], device=order.device)
        numbers = torch.arange(experts, device=chosen.device, dtype=by_row.dtype)
        ends = torch.searchsorted(by_row, numbers, right=True, out_int32=True)
        return cls(order, places, by_row, absent, ends, chosen.shape[-1])

    def rows(self, x: Tensor) -> Tensor:
        """``[S, N]`` of one row for each token, ``[T, N]``; zero where there is no expert."""
        apply: Any = _Rows.apply  # typed in some versions of torch alone
        result: Tensor = apply(x, self)
        return result

    def sorted(self, choices: Tensor) -> Tensor:
        """``[S]`` by row, of one number for each of the router's choices, token by token.

        It is zero where there is no expert, and so are the gradients of and by that choice.
        """
        apply: Any = _Permuted.apply  # typed in some versions of torch alone
        result: Tensor = apply(choices, self.order, self.places)
        return result.masked_fill(self.absent, 0)

    def sums(self, rows: Tensor) -> Tensor:
        """``[T, M]``: for each token the sum of its rows among ``[S, M]``."""
        apply: Any = _Permuted.apply  # typed in some versions of torch alone
        by_choice: Tensor = apply(rows, self.places, self.order)
        return by_choice.view(-1, self.top_k, rows.shape[1]).sum(1)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        rows = x[routing.order // routing.top_k]
        # Not by the weight alone: what a wrong expert makes of the row may be infinite.
        absent = routing.absent.unsqueeze(1)
        # Filled in place within a trace, the rows lose their gradient without a word in torch 2.11.
        return rows.masked_fill(absent, 0) if is_compiling() else rows.masked_fill_(absent, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, drows: Tensor) -> tuple[Tensor, None]:
        routing: Routing = ctx.routing
        return drows[routing.places].view(-1, routing.top_k, drows.shape[1]).sum(1), None


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return dy[inverse], None, None
