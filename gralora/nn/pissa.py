"""Block-wise PiSSA: each block of a weight gives its largest singular triplets to the adapter.

PiSSA (Meng et al., "Principal Singular Values and Singular Vectors Adaptation", NeurIPS 2024, arXiv
2404.02948) trains the principal part of a weight and freezes the rest. Here block (i, j) of W, for
output block i and input block j, with singular value decomposition ``U S Vᵀ`` gives its largest
``s`` triplets:

    B[i, (j, q), o] = U[o, q] * sqrt(S[q] / scaling)
    A[j, c, (i, q)] = V[c, q] * sqrt(S[q] / scaling)

so that ``scaling * A B`` is the best approximation of the block by rank ``s``. A 1 x 1 grid is
PEFT's LoRA with ``init_lora_weights="pissa"``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gralora.nn.spec import AdapterSpec
from gralora.nn.starts import power_iterations

# More directions than are wanted, without which random ones miss some of the last.
_OVERSAMPLING = 8


@torch.no_grad()
def principal_factors(
    matrix: Tensor, spec: AdapterSpec, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Factors of the principal part of every block of a matrix.

    Args:
        matrix: ``[M, N]``, any floating dtype and strides.
        spec: rank, grid, scale, and exact or by random directions.
        generator: on the matrix's device, for random directions; None means torch's default one.

    Returns:
        A ``[k_in, n, k_out*s]`` and B ``[k_out, k_in*s, m]`` in float32, float64 for float64.

    """
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    m, n = matrix.shape[0] // spec.k_out, matrix.shape[1] // spec.k_in
    A = torch.empty(spec.k_in, n, spec.k_out, spec.s, dtype=dtype, device=matrix.device)
    B = torch.empty(spec.k_out, spec.k_in, spec.s, m, dtype=dtype, device=matrix.device)
    # Block after block: the decomposition of one needs several times its memory.
    with torch.autocast(matrix.device.type, enabled=False):
        for i in range(spec.k_out):
            for j in range(spec.k_in):
                block = matrix[i * m : (i + 1) * m, j * n : (j + 1) * n].to(dtype)
                U, S, Vh = _triplets(block, spec, generator)
                root = (S / spec.scaling).sqrt()
                B[i, j] = (U * root).mT
                A[j, :, i] = (Vh * root.unsqueeze(1)).mT
    return A.flatten(2), B.flatten(1, 2)


def _triplets(
    block: Tensor, spec: AdapterSpec, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The `s` largest singular triplets: ``[m, s]``, ``[s]``, ``[s, n]``."""
    iterations = power_iterations(spec.init_weights)
    if iterations is None:
        U, S, Vh = torch.linalg.svd(block, full_matrices=False)
    else:
        U, S, Vh = _by_random_directions(block, spec.s, iterations, generator)
    return U[:, : spec.s], S[: spec.s], Vh[: spec.s]


def _by_random_directions(
    block: Tensor, rank: int, iterations: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate the decomposition; source: Halko, Martinsson, Tropp 2011, algorithms 4.4, 5.1."""
    m, n = block.shape
    directions = torch.empty(
        n, min(rank + _OVERSAMPLING, m, n), dtype=block.dtype, device=block.device
    ).normal_(generator=generator)
    Q = torch.linalg.qr(block @ directions).Q
    for _ in range(iterations):
        Q = torch.linalg.qr(block.mT @ Q).Q
        Q = torch.linalg.qr(block @ Q).Q
    U, S, Vh = torch.linalg.svd(Q.mT @ block, full_matrices=False)
    return Q @ U, S, Vh


def check_pissa(spec: AdapterSpec, matrix: Tensor, *, who: str) -> None:
    """Raise unless a matrix ``[M, N]`` can give an adapter its start.

    Raises:
        ValueError: a rank above the blocks', or a scale that is not positive.
        RuntimeError: a matrix without values of its own, such as a sharded one.

    """
    given = f"init_weights={spec.init_weights!r}"
    m, n = matrix.shape[0] // spec.k_out, matrix.shape[1] // spec.k_in
    if spec.s > min(m, n):
        raise ValueError(
            f"{who}: with {given} the rank of a block must not exceed its sizes, got "
            f"s={spec.s}, blocks of {m} x {n} (at most r={min(m, n) * spec.k_in} with this grid)"
        )
    if not spec.scaling > 0:
        raise ValueError(
            f"{who}: with {given} alpha must be positive, got alpha={spec.alpha}, since the weight "
            "is divided by the scale"
        )
    if matrix.is_meta:
        raise RuntimeError(
            f"{who}: {given} needs a weight with values, got one on the meta device (load the "
            "base model's weights first)"
        )
    if type(matrix) not in (nn.Parameter, Tensor):
        raise RuntimeError(
            f"{who}: {given} needs a weight that is an ordinary tensor, got a "
            f"{type(matrix).__name__} (adapt the model before it is sharded)"
        )


def check_finite(spec: AdapterSpec, matrix: Tensor, *, who: str) -> None:
    """Raise ValueError where the values of a matrix have no singular value decomposition."""
    if not torch.isfinite(matrix).all():
        raise ValueError(
            f"{who}: init_weights={spec.init_weights!r} needs a finite weight, got an Inf or NaN "
            "in it"
        )
