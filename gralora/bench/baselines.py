"""What gralora is compared with: PEFT's layers, and the best composition of library calls.

Symbols: T tokens, N in_features, M out_features, a square grid of k blocks a side of widths n = N/k
and m = M/k, rank r = k*s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

ADAPTER = "default"


def peft_layers(
    config: Any, linears: Sequence[nn.Linear], *, master_weights: bool
) -> list[nn.Module]:
    """Wrap each frozen linear by PEFT itself, as ``get_peft_model`` does in a real model.

    Args:
        config: a PEFT config without target_modules.
        linears: kept as base layers, not copied.
        master_weights: keep the adapters in fp32 beside a 16-bit base, PEFT's default.

    Returns:
        PEFT's layers, one for each linear, in order.
    """
    from peft import get_peft_model

    model: Any = nn.Module()
    model.linears = nn.ModuleList(linears)
    # transformers leaves these marks on a model that it loads so, and PEFT goes by them.
    kind = type(linears[0]).__name__
    model.is_loaded_in_8bit = kind == "Linear8bitLt"
    model.is_loaded_in_4bit = kind == "Linear4bit"
    config.target_modules = r"linears\.\d+"
    get_peft_model(model, config, ADAPTER, autocast_adapter_dtype=master_weights)
    return list(model.linears)


def split_blocks(x: Tensor, blocks: int) -> Tensor:
    """View ``[T, features]`` as ``[blocks, T, features/blocks]``."""
    return x.view(x.shape[0], blocks, -1).transpose(0, 1)


def _exchange(latent: Tensor, grid: int) -> Tensor:
    """Bring ``[j, T, (i, q)]`` to ``[i, T, (j, q)]`` by a copy; its own inverse."""
    tokens = latent.shape[1]
    return latent.view(grid, tokens, grid, -1).permute(2, 1, 0, 3).reshape(grid, tokens, -1)


class LibraryGraLoRA(torch.autograd.Function):
    """``x Wᵀ + Δ(x)`` by library calls alone, with a backward written out by hand.

    The adapter's term is written into y by a strided batched product, and the base product then
    accumulates onto it: y is read under a compute-bound product, where it costs next to nothing,
    instead of in a pass of its own. dx is made in the same way.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        """Compute y ``[..., M]`` from x ``[..., N]``, A ``[k, n, k*s]`` and B ``[k, k*s, m]``."""
        grid = A.shape[0]
        x2 = x.reshape(-1, x.shape[-1])
        latent = _scaled_bmm(split_blocks(x2, grid), A, scaling)
        H = _exchange(latent, grid)
        y = x.new_empty(x2.shape[0], weight.shape[0])
        split_blocks(y, grid).baddbmm_(H, B, beta=0)
        y.addmm_(x2, weight.t())
        ctx.save_for_backward(x, weight, A, B, H)
        ctx.scaling = scaling  # type: ignore[attr-defined]
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        """Compute dx, dA and dB; the weight is frozen."""
        x, weight, A, B, H = ctx.saved_tensors
        grid = A.shape[0]
        x2 = x.reshape(-1, x.shape[-1])
        dy2 = dy.reshape(-1, dy.shape[-1])
        dy_blocks = split_blocks(dy2, grid)
        G = _exchange(_scaled_bmm(dy_blocks, B.transpose(1, 2), ctx.scaling), grid)
        dx = torch.empty_like(x2)
        split_blocks(dx, grid).baddbmm_(G, A.transpose(1, 2), beta=0)
        dx.addmm_(dy2, weight)
        dA = torch.bmm(split_blocks(x2, grid).transpose(1, 2), G)
        dB = torch.bmm(H.transpose(1, 2), dy_blocks)
        return dx.view_as(x), None, dA, dB, None


def library_gralora(x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Run `LibraryGraLoRA`."""
    apply: Callable[..., Tensor] = LibraryGraLoRA.apply
    return apply(x, weight, A, B, scaling)


def _scaled_bmm(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """``scaling * left @ right``, scaled before the sums are rounded."""
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return out.baddbmm_(left, right, beta=0, alpha=scaling)
