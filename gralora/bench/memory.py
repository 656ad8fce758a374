"""What a training step keeps and needs in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward.

    Args:
        forward: run once.
        parameters: tensors that exist anyway, weights among them; their storages do not count.

    Returns:
        The sum over distinct storages, each whole, since a saved view keeps all of it.
    """
    existing = {tensor.untyped_storage().data_ptr() for tensor in parameters}
    # Holding the tensors keeps an address from being reused for another storage meanwhile.
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in existing:
            saved.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a step holds at a time beyond what lived before it, on a CUDA device.

    x, dy and the parameters live before it; y, everything saved, temporaries and gradients count.
    """
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before
