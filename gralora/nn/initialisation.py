"""Gives the factors of an adapter the values with which training starts.

``"kaiming"``
    A uniform within ``1 / sqrt(fan-in)``, B zero: PEFT's GraLoRA and LoRA.
``"gaussian"``
    A normal with standard deviation ``1 / rank``, B zero: PEFT's LoRA with the same name.
``"orthogonal"``
    In every block the first half of A's columns and the second half of B's rows are orthonormal,
    the others zero. The product is exactly zero, and every factor gets a gradient at once. PEFT's
    LoRA has the same halves turned by a random rotation of the ranks, and larger.
``"pissa"``
    See :mod:`gralora.nn.pissa`; here only the plain part of a hybrid, which starts as with
    ``"kaiming"``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gralora.nn.spec import AdapterSpec
from gralora.nn.starts import GAUSSIAN, ORTHOGONAL, is_pissa

Generator = torch.Generator | None


@torch.no_grad()
def initialise(
    spec: AdapterSpec,
    A: Tensor,
    B: Tensor,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    generator: Generator = None,
) -> None:
    """Write the starting values into an adapter's factors, in place.

    Args:
        spec: the adapter's.
        A: ``[..., k_in, n, k_out*s]``, with leading sizes where there are several such adapters;
            left alone, like B, where a part of the weight belongs there.
        B: ``[..., k_out, k_in*s, m]``.
        lora_A: ``[..., r0, N]`` or None.
        lora_B: ``[..., M, r0]`` or None.
        generator: on the factors' device; None means torch's default one.

    Raises:
        RuntimeError: sharded factors that have to start orthogonal.

    """
    if spec.init_weights == ORTHOGONAL:
        _check_whole(A)
        _start_orthogonal(
            torch.unflatten(A, -1, (spec.k_out, spec.s)).movedim(-2, -4),
            torch.unflatten(B, -2, (spec.k_in, spec.s)),
            generator,
        )
        if lora_A is not None and lora_B is not None:
            _start_orthogonal(lora_A.mT, lora_B.mT, generator)
        return
    if not is_pissa(spec.init_weights):
        _start_random(A, B, A.shape[-2], spec.r, spec, generator)
    if lora_A is not None and lora_B is not None:
        _start_random(lora_A, lora_B, lora_A.shape[-1], spec.hybrid_r, spec, generator)


def _start_random(
    A: Tensor, B: Tensor, fan_in: int, rank: int, spec: AdapterSpec, generator: Generator
) -> None:
    if spec.init_weights == GAUSSIAN:
        A.normal_(0.0, 1 / rank, generator=generator)
    else:
        # Kaiming-uniform with a = sqrt(5) is uniform within 1/sqrt(fan-in).
        bound = 1 / math.sqrt(fan_in)
        A.uniform_(-bound, bound, generator=generator)
    B.zero_()


def _start_orthogonal(A: Tensor, B: Tensor, generator: Generator) -> None:
    """Fill blocks of factors, ``[..., n, s]`` and ``[..., s, m]``."""
    half = (A.shape[-1] + 1) // 2
    A.zero_()
    B.zero_()
    A[..., :half] = _semi_orthogonal(A[..., :half], generator)
    if half < B.shape[-2]:
        B[..., half:, :] = _semi_orthogonal(B[..., half:, :].mT, generator).mT


def _semi_orthogonal(like: Tensor, generator: Generator) -> Tensor:
    """Random matrices of a shape whose columns are orthonormal, or their rows where those are less.

    Uniform among all such matrices: the signs of R are those that make the decomposition unique
    (Mezzadri, "How to generate random matrices from the classical compact groups", 2007).
    """
    tall = like if like.shape[-2] >= like.shape[-1] else like.mT
    dtype = torch.promote_types(like.dtype, torch.float32)
    drawn = torch.empty(tall.shape, dtype=dtype, device=like.device).normal_(generator=generator)
    Q, R = torch.linalg.qr(drawn)
    Q = torch.where(R.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) < 0, -Q, Q)
    return Q if tall is like else Q.mT


def _check_whole(factor: Tensor) -> None:
    # Not isinstance: a torch without distributed has no DTensor.
    if hasattr(factor, "placements"):
        raise RuntimeError(
            'reset_adapter: init_weights="orthogonal" needs whole factors, got a DTensor '
            "(initialise before the model is sharded)"
        )
