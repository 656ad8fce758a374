"""The operators as functions.

Shapes: ``T`` tokens are the product of all leading dimensions of ``x``; ``N`` and ``M`` are the in-
and out-features; the grid has ``k_in`` input blocks of ``n = N / k_in`` channels and ``k_out``
output blocks of ``m = M / k_out``; each block has rank ``s``.

====== ======================= ==========================================
factor shape                   meaning
====== ======================= ==========================================
A      ``[k_in, n, k_out*s]``  last axis is (output block, rank)
B      ``[k_out, k_in*s, m]``  middle axis is (input block, rank)
lora_A ``[r0, N]``             plain LoRA part, shared by all blocks
lora_B ``[M, r0]``             plain LoRA part, shared by all blocks
====== ======================= ==========================================

For a square grid A and B are PEFT's ``gralora_A`` and ``gralora_B``; a 1 x 1 grid, or ``lora_A``
and ``lora_B`` alone, is LoRA. Factors may have any floating dtype and any strides: they are rounded
to x's dtype on the way in, sums are kept in float32 (float64 for float64), and their gradients come
back in their own dtype. Second derivatives and ``torch.func`` transforms of the two layers raise
NotImplementedError; :func:`delta_weight` has derivatives of any order.

Shapes, dtypes and devices are checked by the operators, whose errors name the rule and the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from gralora import _C

# The compiler traces the operators themselves; eager calls of them go through plain functions,
# since torch.ops matches a call's arguments with the schema anew each time.
_linear = torch.ops.gralora.linear.default
_add = torch.ops.gralora.add.default
_linear_group = torch.ops.gralora.linear_group.default
_delta_weight = torch.ops.gralora.delta_weight.default


def gralora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    *,
    scaling: float,
    lora_A: Tensor | None = None,
    lora_B: Tensor | None = None,
    dropout_p: float = 0.0,
    training: bool = True,
) -> Tensor:
    """Adapted linear layer: ``x weightᵀ + bias + Δ(dropout(x))``.

    Args:
        x: ``[..., N]``, float64, float32, bfloat16 or float16; any strides, zero tokens allowed.
        weight: ``[M, N]`` in x's dtype, any strides.
        bias: ``[M]`` in x's dtype, or None.
        A: ``[k_in, n, k_out*s]``, or None together with B.
        B: ``[k_out, k_in*s, m]``, or None together with A.
        scaling: factor of the whole adapter, usually ``alpha / (r + r0)``.
        lora_A: ``[r0, N]``, or None together with lora_B.
        lora_B: ``[M, r0]``, or None together with lora_A.
        dropout_p: probability with which an element of the adapter's input is dropped. One mask
            serves both parts. It is drawn from torch's default generator of x's device and redrawn,
            never stored, in the backward pass.
        training: dropout acts only when True.

    Returns:
        ``[..., M]`` in x's dtype (autocast's where autocast is on).

    Raises:
        RuntimeError: shapes or devices that do not belong together.
        TypeError: a dtype that is not supported, or weight and x of different dtypes.
        ValueError: ``dropout_p`` outside [0, 1].

    """
    if is_compiling():
        result: Tensor = _linear(
            x, weight, bias, A, B, lora_A, lora_B, scaling=scaling, dropout_p=dropout_p,
            training=training,
        )  # fmt: skip
        return result
    return _C.linear(x, weight, bias, A, B, lora_A, lora_B, scaling, dropout_p, training)


def gralora_linear_group(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    *,
    scaling: float,
) -> tuple[Tensor, ...]:
    """Adapted linear layers that read the same input, such as q, k and v projections.

    What :func:`gralora_linear` gives for each, with less work: x is read once for the latents of
    all layers and once for the gradients of all A, and dx is one sum over all layers.

    Args:
        x: ``[..., N]``, as in :func:`gralora_linear`.
        weights: one to three ``[M, N]`` of any M, frozen.
        biases: for each layer ``[M]``, frozen, or None.
        A: for each layer ``[k_in, n, k_out*s]``; k_in and s are the same in all.
        B: for each layer ``[k_out, k_in*s, m]``, all factors of one dtype.
        scaling: factor of every adapter.

    Returns:
        For each layer ``[..., M]`` in x's dtype (autocast's where autocast is on).

    Raises:
        RuntimeError: shapes or devices that do not belong together.
        TypeError: a dtype that is not supported, or dtypes that must agree and do not.
        ValueError: a number of layers, biases or factors that does not fit, or a weight or bias
            that requires a gradient.

    """
    results: list[Tensor] = _linear_group(x, weights, biases, A, B, scaling=scaling)
    return tuple(results)


def gralora_add(
    y: Tensor,
    x: Tensor,
    A: Tensor | None,
    B: Tensor | None,
    *,
    scaling: float,
    lora_A: Tensor | None = None,
    lora_B: Tensor | None = None,
    dropout_p: float = 0.0,
    training: bool = True,
) -> Tensor:
    """Adapter alone, for a base layer that is not a plain matrix: ``y + Δ(dropout(x))``.

    Args:
        y: ``[..., M]``, the base layer's output; it is not written to.
        x: ``[..., N]``, the base layer's input, with y's leading sizes.
        A: as in :func:`gralora_linear`, like B, scaling, lora_A, lora_B, dropout_p and training.
        B: see A.
        scaling: see A.
        lora_A: see A.
        lora_B: see A.
        dropout_p: see A.
        training: see A.

    Returns:
        ``[..., M]`` in y's dtype, which may differ from x's.

    Raises:
        RuntimeError, TypeError, ValueError: as :func:`gralora_linear`.

    """
    if is_compiling():
        result: Tensor = _add(
            y, x, A, B, lora_A, lora_B, scaling=scaling, dropout_p=dropout_p, training=training
        )
        return result
    return _C.add(y, x, A, B, lora_A, lora_B, scaling, dropout_p, training)


def delta_weight(
    A: Tensor | None,
    B: Tensor | None,
    *,
    scaling: float,
    lora_A: Tensor | None = None,
    lora_B: Tensor | None = None,
) -> Tensor:
    """Weight difference that the adapter stands for: ``[M, N]`` in the factors' promoted dtype.

    Block (i, j) is ``scaling * B[i, (j, :), :]ᵀ A[j, :, (i, :)]ᵀ``; the plain part adds
    ``scaling * lora_B lora_A``. Differentiable, to any order.

    Args:
        A: ``[k_in, n, k_out*s]``, any floating dtype, or None together with B.
        B: ``[k_out, k_in*s, m]``, any floating dtype, or None together with A.
        scaling: factor of the whole adapter.
        lora_A: ``[r0, N]``, or None together with lora_B.
        lora_B: ``[M, r0]``, or None together with lora_A.

    Returns:
        ``[M, N]``, contiguous.

    Raises:
        RuntimeError: factors whose shapes or devices do not belong together, or no pair at all.
        TypeError: a dtype that is not supported.

    """
    result: Tensor = _delta_weight(A, B, lora_A, lora_B, scaling=scaling)
    return result
