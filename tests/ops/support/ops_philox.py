"""Philox4x32-10 and the dropout mask drawn from it, in NumPy.

The generator is that of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32_10(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds over `counter` [count, 4] (32-bit values) with one `key`; returns [count, 4]."""
    c0, c1, c2, c3 = (counter[:, word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIER[0] * c0, _MULTIPLIER[1] * c2
        c0 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


def dropout_threshold(p: float) -> int:
    """The 16-bit number below which an element is dropped."""
    return 65536 if p == 1 else min(65535, math.floor(p * 65536 + 0.5))


def dropout_scale(p: float) -> float:
    """What a kept element is multiplied by; zero where nothing is kept."""
    threshold = dropout_threshold(p)
    return 0.0 if threshold == 65536 else 65536 / (65536 - threshold)


def kept(rng_state: Tensor, start: int, count: int, p: float) -> Tensor:
    """Which of the elements `start ... start+count-1` of the flattened input are kept, bool."""
    seed, offset = (value & 0xFFFFFFFFFFFFFFFF for value in rng_state.tolist())
    element = np.arange(start, start + count, dtype=np.uint64)
    first = start // 8
    group = np.arange(first, (start + count + 7) // 8, dtype=np.uint64)
    counter = np.stack(
        [
            group & _MASK,
            group >> _SHIFT,
            np.full_like(group, offset & 0xFFFFFFFF),
            np.full_like(group, offset >> 32),
        ],
        axis=1,
    )
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))
    lane = element % np.uint64(8)
    word = words[(element // np.uint64(8) - np.uint64(first)).astype(np.int64), lane // 2]
    number = (word >> (np.uint64(16) * (lane % np.uint64(2)))) & np.uint64(0xFFFF)
    return torch.from_numpy(number.astype(np.int64) >= dropout_threshold(p))


def keep_mask(rng_state: Tensor, T: int, N: int, p: float) -> Tensor:
    """The mask of an input of `T` rows and `N` columns, bool [T, N]."""
    return kept(rng_state, 0, T * N, p).reshape(T, N)
