"""Which way adapters' products take on CUDA: gralora's kernels, or library calls."""

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
            (projections and the factors' gradients without dropout, and the base product that takes
            the adapter's term along), and the kernels of ``"sm80"`` in the others; None for the
            fastest of them.

    Raises:
        ValueError: another name.

    """
    before = _C.forced_path()
    _C.force_path(path)
    try:
        yield
    finally:
        _C.force_path(before)
