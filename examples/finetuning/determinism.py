"""The same bits for the same seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import torch
from torch import Tensor


def prepare(device: torch.device, seed: int, *, deterministic: bool) -> None:
    """Seed torch and, on a CPU or where it is asked for, choose deterministic algorithms.

    Call it before anything runs on a GPU: cuBLAS reads its setting when it starts.
    """
    if device.type == "cpu":
        # A model of the user's may hold an operator that torch has no deterministic version of.
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling finds reads of unwritten memory; here it would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False
    elif deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        # Flash attention has a deterministic backward; where it does not apply, plain products do.
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.manual_seed(seed)


def generator(seed: int) -> torch.Generator:
    """Random numbers of the CPU that depend on `seed` alone."""
    return torch.Generator().manual_seed(seed)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bits, in the order of the names."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.flatten().view(torch.uint8).numpy())
    return result.hexdigest()
