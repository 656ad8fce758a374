"""Which kernels a layer's forward and backward pass take on a GPU, and why."""

from __future__ import annotations

from typing import TypedDict

import torch

from gralora import _C
from gralora.nn.spec import check_int, make_spec

DTYPES = ("bf16", "fp16", "fp32", "fp64")
_H100_PROCESSORS = 132


class Step(TypedDict):
    """One step of the adapter: which way it takes, and why."""

    step: str
    path: str
    reason: str


def explain(
    T: int,
    N: int,
    M: int,
    r: int,
    k: int,
    dtype: str = "bf16",
    processors: int | None = None,
    *,
    bias: bool = False,
    dropout: bool = False,
) -> list[Step]:
    """List the steps of a forward and a backward pass with the choice that is made for each.

    It holds for contiguous tensors, factors in `dtype` or float32, no plain LoRA part and no forced
    path; rows that are not 16-byte aligned send a step to library calls. Needs no GPU.

    Args:
        T: tokens.
        N: in-features.
        M: out-features.
        r: rank that each output block sees.
        k: blocks per axis.
        dtype: of x, one of :data:`DTYPES`.
        processors: multiprocessors of the GPU; None means those of the first GPU, or of an H100.
        bias: whether the layer has one.
        dropout: whether the adapter's input goes through dropout.

    Raises:
        TypeError: a size that is no int.
        ValueError: a size out of range, a grid that does not fit, or another dtype.

    """
    who = "explain"
    for name, value in (("T", T), ("N", N), ("M", M)):
        check_int(who, name, value, 1)
    if dtype not in DTYPES:
        raise ValueError(f"{who}: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    s = make_spec(
        N, M, r=r, k=k, alpha=None, hybrid_r=0, dropout=0.0, use_rslora=False, who=who
    ).s  # fmt: skip
    half = dtype in ("bf16", "fp16")
    if processors is None:
        processors = _count_processors()
    check_int(who, "processors", processors, 1)
    n, m, columns = N // k, M // k, k * s

    def project(width: int, *, transposed: bool) -> _C.Choice:
        return _C.select_project(
            T=T, width=width, columns=columns, inner=k, outer=k, factor_transposed=transposed,
            half=half, processors=processors, drops=dropout and not transposed,
        )  # fmt: skip

    def expand_y() -> _C.Choice:
        onto_bias = _C.select_expand(T=T, width=m, blocks=k, half=half, bias=bias)
        if not bias or onto_bias["path"] == "kernel":
            return onto_bias
        # The base product comes first and brings the bias; the term is added to what it wrote.
        choice = _C.select_expand(T=T, width=m, blocks=k, half=half)
        reason = f"{choice['reason']}; onto the base product and its bias"
        return {"path": choice["path"], "possible": choice["possible"], "reason": reason}

    # Rows of latents are padded; those of A, x and dy start on 16-byte boundaries in contiguous
    # tensors where their length is a multiple of eight.
    choices: dict[str, _C.Choice] = {
        "H = x A": project(n, transposed=False),
        "y = H B": expand_y(),
        "G = dy B^T": project(m, transposed=True),
        "dx = G A^T": _C.select_expand(
            T=T, width=n, blocks=k, half=half, aligned=columns % 8 == 0, drops=dropout
        ),
        "dA, dB": _C.select_weight_gradient(
            T=T,
            gradients=[(k, n, columns), (k, m, columns)],
            half=half,
            aligned=n % 8 == 0 and m % 8 == 0,
            drops=dropout,
            processors=processors,
        ),
    }
    return [
        {"step": step, "path": choice["path"], "reason": choice["reason"]}
        for step, choice in choices.items()
    ]


def _count_processors() -> int:
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).multi_processor_count
    return _H100_PROCESSORS
