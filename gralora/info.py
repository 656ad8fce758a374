"""What was built, what runs, and what is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

import gralora
from gralora import _C, _extension

_COMPANIONS = ("peft", "transformers", "safetensors")


def _describe_gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "index": index,
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def _covers(architectures: list[str], capability: str) -> bool:
    """Whether one of these architectures runs on a GPU: same major, no newer minor, or PTX."""
    major, minor = (int(part) for part in capability.split("."))
    for architecture in architectures:
        number = architecture.removesuffix("-real").removesuffix("-virtual")
        specific = number.endswith("a")
        value = int(number.rstrip("af"))
        if specific:
            if value == 10 * major + minor:
                return True
            continue
        same_major = value // 10 == major and value % 10 <= minor
        from_ptx = not architecture.endswith("-real") and value <= 10 * major + minor
        if same_major or from_ptx:
            return True
    return False


def collect() -> dict[str, Any]:
    """Gather the facts that ``gralora info`` prints; needs no GPU.

    Returns:
        A dict that JSON can hold, with at least ``version``, ``torch`` (running), ``torch_built``,
        ``cuda_built``, ``cuda_version``, ``cuda_architectures``, ``gpus``, ``packages`` and
        ``notes`` (what is missing and what to do about it).

    """
    built = _C.build_info()
    gpus = [_describe_gpu(i) for i in range(torch.cuda.device_count())]
    notes: list[str] = []
    if not built["cuda_built"]:
        reason = _extension.build_info.REASON or "the build was for the CPU"
        notes.append(f"CUDA kernels were not built: {reason}")
    elif not gpus:
        notes.append("no GPU is visible: CUDA kernels are built and wait for one")
    for gpu in gpus:
        if built["cuda_built"] and not _covers(built["cuda_architectures"], gpu["capability"]):
            notes.append(
                f"GPU {gpu['index']} ({gpu['name']}) has capability {gpu['capability']}, which "
                f"{', '.join(built['cuda_architectures'])} do not cover: rebuild with "
                f"TORCH_CUDA_ARCH_LIST={gpu['capability']}"
            )
    return {
        "version": gralora.__version__,
        "torch": torch.__version__,
        "torch_built": built["torch_version"],
        "cuda_built": built["cuda_built"],
        "cuda_version": built["cuda_version"] or None,
        "cuda_architectures": built["cuda_architectures"],
        "gpus": gpus,
        "packages": {name: find_spec(name) is not None for name in _COMPANIONS},
        "notes": notes,
    }
