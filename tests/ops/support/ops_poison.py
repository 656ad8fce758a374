"""Free GPU memory filled with NaN, so that an element which is never written shows as one.

Unlike torch's own filling of uninitialised memory (the fixture `poisoned_memory`) this adds no
kernel between those of an operator and needs no deterministic mode: what runs is what users run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

# All bits set are NaN in every floating dtype.
NAN_BYTE = 0xFF
# The caching allocator serves up to so many bytes from its small blocks.
SMALL_BYTES = 1 << 20


def poison_free_memory() -> None:
    """Fills every free block that the caching allocator keeps for the current stream."""
    stream = torch.cuda.current_stream().cuda_stream
    device = torch.cuda.current_device()
    taken = []
    for size in _free_sizes(device, stream):
        taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    for block in taken:
        block.fill_(NAN_BYTE)


def on_poisoned_memory(call: Callable[[], Result]) -> Result:
    """What `call` returns the second time, in the memory of its first and filled with NaN."""
    if not torch.cuda.is_available():
        return call()
    call()
    poison_free_memory()
    return call()


def _free_sizes(device: int, stream: int) -> list[int]:
    sizes = []
    for segment in torch.cuda.memory_snapshot():
        elsewhere = segment["device"] != device or segment["stream"] != stream
        # Blocks of graphs are in pools of their own, which nothing outside a capture gets.
        if elsewhere or tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0):
            continue
        largest = SMALL_BYTES if segment["segment_type"] == "small" else segment["total_size"]
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                whole, rest = divmod(block["size"], largest)
                sizes += [largest] * whole + ([rest] if rest else [])
    # The largest first: a small request never splits a block that a later one needs.
    return sorted(sizes, reverse=True)
