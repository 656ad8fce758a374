"""Singular values and block norms of ΔW, exact, without ΔW.

Block (i, j) of ΔW is ``scaling * L_i S_ij R_j``: ``L_i [m, k_in*s + r0]`` holds what B and lora_B
have for output block i, ``R_j [k_out*s + r0, n]`` what A and lora_A have for input block j, and
S_ij picks the latents that the two share. With thin QR decompositions ``L_i = Q_i T_i`` and
``R_jᵀ = P_j U_j``,

    ΔW = diag(Q_1, …) C diag(P_1, …)ᵀ,        C_ij = scaling * T_i S_ij U_jᵀ.

Q_i and P_j have orthonormal columns, so ΔW and C have the same singular values, and each block the
same norm as its C_ij. C has about ``k_out*(k_in*s + r0)`` rows and ``k_in*(k_out*s + r0)`` columns,
a small part of M and N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gralora.adapters.stored import StoredLayer

_ENERGY = 0.99
# Of float64, and how many matrices of C's size, the factors' and the block norms' exist at a time:
# at most 4.4 of C's were measured.
_BYTES, _COPIES = 8, 5


@dataclass(frozen=True)
class Spectrum:
    """What ΔW of a layer is like, as matrices.

    Attributes:
        block_norms: Frobenius norm of each block, ``k_out`` rows of ``k_in`` numbers.
        singular_values: those that may differ from zero, the largest first, float64.

    """

    block_norms: tuple[tuple[float, ...], ...]
    singular_values: Tensor

    @property
    def norm(self) -> float:
        """Frobenius norm of ΔW."""
        return math.hypot(*(norm for row in self.block_norms for norm in row))

    @property
    def entropy_rank(self) -> float:
        """Exponential of the entropy of the singular values as shares; 0 where ΔW is zero.

        Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
        """
        total = self.singular_values.sum()
        if not total > 0:
            return 0.0
        shares = self.singular_values / total
        return math.exp(float(torch.special.entr(shares).sum()))

    @property
    def energy_rank(self) -> int:
        """Fewest singular values whose squares sum up to 99% of all; 0 where ΔW is zero."""
        energy = self.singular_values.square().cumsum(0)
        if not len(energy) or not energy[-1] > 0:
            return 0
        return int(torch.searchsorted(energy, _ENERGY * energy[-1])) + 1


def memory_of_spectrum(layer: StoredLayer) -> int:
    """Bytes that :func:`spectrum` takes at its peak, at most."""
    spec, n, m = layer.spec, layer.A.shape[1], layer.B.shape[2]
    height = spec.k_out * min(m, spec.k_in * spec.s + spec.hybrid_r)
    width = spec.k_in * min(n, spec.k_out * spec.s + spec.hybrid_r)
    factors = sum(factor.numel() for factor in layer.factors if factor is not None)
    return _BYTES * _COPIES * (height * width + factors + spec.k_out * spec.k_in)


def spectrum(layer: StoredLayer) -> Spectrum:
    """Block norms and singular values of a layer's ΔW, computed in float64.

    Raises:
        ValueError: factors with an Inf or NaN.

    """
    core = _core(layer)
    if not bool(core.isfinite().all()):
        raise ValueError(
            "spectrum: factors must be finite, got an Inf or NaN, or products that overflow"
        )
    k_out, height, k_in, width = core.shape
    norms = core.transpose(1, 2).flatten(2).norm(dim=2)
    values = torch.linalg.svdvals(core.reshape(k_out * height, k_in * width))
    return Spectrum(tuple(tuple(row) for row in norms.tolist()), values)


def _core(layer: StoredLayer) -> Tensor:
    """C as ``[k_out, height, k_in, width]``."""
    spec = layer.spec
    k_out, k_in, s, r0 = spec.k_out, spec.k_in, spec.s, spec.hybrid_r
    left = layer.B.double().transpose(1, 2)
    right = layer.A.double()
    if layer.lora_A is not None and layer.lora_B is not None:
        left = torch.cat([left, layer.lora_B.double().reshape(k_out, -1, r0)], 2)
        right = torch.cat([right, layer.lora_A.double().T.reshape(k_in, -1, r0)], 2)
    # Householder reflections of an Inf or NaN may not come to an end.
    if not bool(left.isfinite().all() and right.isfinite().all()):
        return left.new_full((k_out, 1, k_in, 1), math.nan)
    t = torch.linalg.qr(left, mode="r").R
    u = torch.linalg.qr(right, mode="r").R
    height, width = t.shape[1], u.shape[1]
    granular = torch.einsum(
        "iajq,jbiq->iajb",
        t[:, :, : k_in * s].reshape(k_out, height, k_in, s),
        u[:, :, : k_out * s].reshape(k_in, width, k_out, s),
    )
    plain = torch.einsum("iaq,jbq->iajb", t[:, :, k_in * s :], u[:, :, k_out * s :])
    return spec.scaling * (granular + plain)
