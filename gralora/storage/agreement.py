"""Whether tensors are the ones that an adapter needs: every key, shape and dtype."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from gralora.injection.listing import some
from gralora.storage.tensor_names import Wanted

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Described(Protocol):
    """Anything with the shape and dtype of a tensor."""

    @property
    def shape(self) -> Collection[int]:
        """Sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers."""


def check_agreement(
    wanted: Mapping[str, Wanted], received: Mapping[str, Described], *, who: str
) -> None:
    """Raise unless `received` has exactly the wanted keys, with their shapes and dtypes.

    Raises:
        ValueError: keys that are missing or unexpected, or a tensor of another shape.
        TypeError: a tensor of another kind of numbers.

    """
    missing = [key for key in wanted if key not in received]
    unexpected = [key for key in received if key not in wanted]
    if missing or unexpected:
        parts = [
            f"{len(keys)} {kind} ({some(map(repr, keys))})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ValueError(
            f"{who}: the tensors must be those of the adapter, got {' and '.join(parts)}"
        )
    for key, want in wanted.items():
        shape = tuple(received[key].shape)
        if shape != want.shape:
            raise ValueError(f"{who}: {key} must have shape {want.shape}, got {shape}")
        _check_dtype(key, want, received[key].dtype, who)


def _check_dtype(key: str, want: Wanted, dtype: torch.dtype, who: str) -> None:
    if want.dtype is None or want.dtype.is_floating_point:
        if dtype not in _FLOATING:
            accepted = ", ".join(str(kind).removeprefix("torch.") for kind in _FLOATING)
            raise TypeError(f"{who}: {key} must be floating ({accepted}), got {dtype}")
    elif dtype != want.dtype:
        raise TypeError(f"{who}: {key} must have dtype {want.dtype}, got {dtype}")
