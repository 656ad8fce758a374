"""The steps of an adapter, each by itself: calls on a ring of operands, bytes and operations.

The steps are ``torch.ops.gralora_steps``: hand-written kernels on a GPU, library calls elsewhere.
Symbols: T tokens, N in_features, M out_features, a square grid of k blocks a side of widths n = N/k
and m = M/k, rank r of an output block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gralora.bench.case import SCALING, Case
from gralora.bench.harness import Call, l2_bytes, random_tensor

# Enough for any call that moves 300 kB; a graph of more nodes would take long to make.
_MOST_BUFFERS = 512
_CPU_BUFFERS = 2
_DROPOUT_P = 0.1


@dataclass(frozen=True)
class Operation:
    """The same work on different operands.

    Attributes:
        name: of the step.
        calls: one to each set of operands.
        bytes_moved: what one call must read and write when it touches each operand just once.
        flop: multiplications and additions of its products; 0 without a product.
        has_paths: whether kernels and library calls can be chosen between.
    """

    name: str
    calls: Sequence[Call]
    bytes_moved: int
    flop: int
    has_paths: bool


class Operands:
    """Draws operands of a case on a device."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.device = device
        self.dtype = case.torch_dtype
        self.k, self.r = case.grid, case.rank
        self.n, self.m = case.in_features // case.grid, case.out_features // case.grid

    def rows(self, features: int) -> Tensor:
        """``[T, features]``."""
        return random_tensor(self.case.tokens, features, dtype=self.dtype, device=self.device)

    def latent(self) -> Tensor:
        """H or G, ``[k, T, r]`` with rows padded to 8 elements."""
        pitch = math.ceil(self.r / 8) * 8
        shape = (self.k, self.case.tokens, pitch)
        latent = random_tensor(*shape, dtype=self.dtype, device=self.device)
        return latent.narrow(2, 0, self.r)

    def input_factor(self, dtype: torch.dtype | None = None) -> Tensor:
        """A ``[k, n, r]``."""
        return self._factor(self.n, self.r, dtype)

    def output_factor(self, dtype: torch.dtype | None = None) -> Tensor:
        """B ``[k, r, m]``."""
        return self._factor(self.r, self.m, dtype)

    def weight(self) -> Tensor:
        """``[M, N]``."""
        shape = (self.case.out_features, self.case.in_features)
        return random_tensor(*shape, dtype=self.dtype, device=self.device)

    def _factor(self, rows: int, columns: int, dtype: torch.dtype | None) -> Tensor:
        shape = (self.k, rows, columns)
        scale = self.r**-0.5
        return random_tensor(*shape, dtype=dtype or self.dtype, device=self.device, scale=scale)


# Draws one set of operands and returns the call on it with the tensors that it reads and writes.
Draw = Callable[[Operands], tuple[Call, Sequence[Tensor]]]


def operations(case: Case, device: torch.device, names: Sequence[str]) -> Iterator[Operation]:
    """Build the steps of a case, one after the other; a caller may drop one before the next.

    Raises:
        RuntimeError: the installed package was built without the steps.
    """
    if not hasattr(torch.ops.gralora_steps, "project"):
        raise RuntimeError("gralora's compiled part is older than this suite: rebuild it")
    operands = Operands(case, device)
    product = 2 * case.tokens * case.rank
    flop = {
        "project H": product * case.in_features,
        "project G": product * case.out_features,
        "expand y": product * case.out_features,
        "expand dx": product * case.in_features,
        "weight gradient": product * (case.in_features + case.out_features),
        "merge": 2 * case.in_features * case.out_features * case.rank // case.grid,
    }
    for name in names:
        call, tensors = DRAWS[name](operands)
        bytes_moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        calls = [call]
        for _ in range(ring_size(bytes_moved, device) - 1):
            calls.append(DRAWS[name](operands)[0])
        yield Operation(name, calls, bytes_moved, flop.get(name, 0), name in WITH_PATHS)


def ring_size(bytes_moved: int, device: torch.device) -> int:
    """So many sets of operands that one call's are out of the cache when its turn comes again."""
    if device.type != "cuda":
        return _CPU_BUFFERS
    return min(_MOST_BUFFERS, max(2, math.ceil(3 * l2_bytes(device) / bytes_moved)))


def _project(latent: Tensor, rows: Tensor, factor: Tensor) -> tuple[Call, Sequence[Tensor]]:
    call = functools.partial(torch.ops.gralora_steps.project, latent, rows, factor, scaling=SCALING)
    return call, (latent, rows, factor)


def _draw_project_h(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    x = operands.rows(operands.case.in_features)
    return _project(operands.latent(), x, operands.input_factor())


def _draw_project_g(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    dy = operands.rows(operands.case.out_features)
    return _project(operands.latent(), dy, operands.output_factor().transpose(1, 2))


def _expand(rows: Tensor, latent: Tensor, factor: Tensor) -> tuple[Call, Sequence[Tensor]]:
    call = functools.partial(torch.ops.gralora_steps.expand, rows, latent, factor, overwrite=True)
    return call, (rows, latent, factor)


def _draw_expand_y(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    y = operands.rows(operands.case.out_features)
    return _expand(y, operands.latent(), operands.output_factor())


def _draw_expand_dx(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    dx = operands.rows(operands.case.in_features)
    return _expand(dx, operands.latent(), operands.input_factor().transpose(1, 2))


def _draw_weight_gradient(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    x, dy = operands.rows(operands.case.in_features), operands.rows(operands.case.out_features)
    H, G = operands.latent(), operands.latent()
    call = functools.partial(
        torch.ops.gralora_steps.sum_over_tokens,
        [_blocks(x, operands.k), _blocks(dy, operands.k)],
        [G, H],
        [False, True],  # dA = xᵀ G, dB = Hᵀ dy
        dtype=operands.dtype,
    )
    # The results have the sizes of A and B.
    return call, (x, dy, H, G, operands.input_factor(), operands.output_factor())


def _draw_exchange(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    shape = (operands.k, operands.case.tokens, operands.r)
    product = random_tensor(*shape, dtype=operands.dtype, device=operands.device)
    latent = operands.latent()
    return functools.partial(torch.ops.gralora_steps.exchange, latent, product), (latent, product)


def _draw_round(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    masters = [operands.input_factor(torch.float32), operands.output_factor(torch.float32)]
    # Beside fp32 and fp64 layers nothing is rounded in training: bf16 stands for the work.
    to = operands.dtype if operands.dtype.itemsize == 2 else torch.bfloat16
    call = functools.partial(torch.ops.gralora_steps.round, masters, dtype=to)
    results = [torch.empty(factor.shape, dtype=to, device="meta") for factor in masters]
    return call, (*masters, *results)


def _draw_merge(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    weight, A, B = operands.weight(), operands.input_factor(), operands.output_factor()
    # A small scale: the same weight is merged into again and again.
    call = functools.partial(
        torch.ops.gralora.merge_, weight, A, B, None, None, scaling=1e-3, sign=1.0
    )
    return call, (weight, weight, A, B)


def _draw_dropout(operands: Operands) -> tuple[Call, Sequence[Tensor]]:
    x = operands.rows(operands.case.in_features)
    state = torch.tensor([1, 0], dtype=torch.int64, device=operands.device)
    return functools.partial(torch.ops.gralora.dropout, x, state, p=_DROPOUT_P), (x, x)


def _blocks(rows: Tensor, blocks: int) -> Tensor:
    """View ``[T, features]`` as ``[blocks, T, features/blocks]``."""
    return rows.view(rows.shape[0], blocks, -1).transpose(0, 1)


DRAWS: dict[str, Draw] = {
    "project H": _draw_project_h,
    "project G": _draw_project_g,
    "expand y": _draw_expand_y,
    "expand dx": _draw_expand_dx,
    "weight gradient": _draw_weight_gradient,
    "exchange": _draw_exchange,
    "round": _draw_round,
    "merge": _draw_merge,
    "dropout": _draw_dropout,
}

# The others have one way each.
WITH_PATHS = frozenset({"project H", "project G", "expand y", "expand dx", "weight gradient"})
