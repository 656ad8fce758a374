"""How adapters compute: by which kernels, and whether latents are kept or made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from gralora import _C

Path = Literal["aten", "sm80", "sm90"]


@contextmanager
def forced(path: Path | None) -> Iterator[None]:
    """Force one path while the block runs, in all threads; for tests and comparisons.

    The environment variable ``GRALORA_KERNEL`` forces one for the whole process.

    Args:
        path: ``"aten"`` for products by library calls (rounding, and bringing the blocks of their
            results in order, stay kernels); ``"sm80"`` for the kernels, with an error where they
            cannot run; ``"sm90"`` for those of compute capability 9.0a in the steps that have one
            (projections, under dropout of up to 128 columns; the factors' gradients; the base
            product that takes the adapter's term along) and the kernels of ``"sm80"`` in the
            others; None for the fastest of them, and up to 16 tokens for a kernel that reads the
            frozen weight as well, which no path forces.

    Raises:
        ValueError: another name.

    """
    before = _C.forced_path()
    _C.force_path(path)
    try:
        yield
    finally:
        _C.force_path(before)


@contextmanager
def recomputed_latents(enabled: bool = True) -> Iterator[None]:
    """Keep no latents of the forward passes that run in the block, in all threads.

    The gradient of B needs the latents ``H = scaling * x A``: of each layer ``k_out * T * r``
    numbers of x's dtype, and ``T * r0`` of a hybrid's plain part. By default the forward pass keeps
    them for the backward pass; here that makes them again from x, which is kept anyway where A is
    trained: less memory, and one projection more. Dropout drops the same elements. The gradients
    agree up to rounding. The backward pass itself may run outside of the block. What
    ``torch.compile`` traces keeps to what held then.

    Args:
        enabled: False keeps the latents, inside of a block that does not.

    """
    before = _C.saves_latents()
    _C.set_saves_latents(not enabled)
    try:
        yield
    finally:
        _C.set_saves_latents(before)
