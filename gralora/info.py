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


def _covers(architectures: list[str], ptx: list[str], capability: str) -> bool:
    """Whether a build runs on a GPU.

    Machine code runs on its own chip and on later minors of the same major (``90a``: on 9.0 alone),
    PTX on every chip that is not older. CMake's ``native`` and ``all`` name no chip: trust them.
    """
    major, minor = (int(part) for part in capability.split("."))
    chip = 10 * major + minor
    for architecture in architectures:
        if architecture in ("native", "all", "all-major"):
            return True
        number = int(architecture.rstrip("af"))
        if number == chip:
            return True
        if architecture.isdigit() and number // 10 == major and number <= chip:
            return True
    return any(code.isdigit() and int(code) <= chip for code in ptx)


def collect() -> dict[str, Any]:
    """Gather the facts that ``gralora info`` prints; needs no GPU.

    Returns:
        A dict that JSON can hold, with at least ``version``, ``torch`` (running), ``torch_built``,
        ``cuda_built``, ``cuda_version``, ``cuda_architectures``, ``cuda_ptx``, ``gpus``,
        ``packages`` and ``notes`` (what is missing and what to do about it).

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
        covered = _covers(built["cuda_architectures"], built["cuda_ptx"], gpu["capability"])
        if built["cuda_built"] and not covered:
            code = built["cuda_architectures"] + [f"{code}+PTX" for code in built["cuda_ptx"]]
            notes.append(
                f"GPU {gpu['index']} ({gpu['name']}) has capability {gpu['capability']}, which "
                f"the build for {', '.join(code)} does not cover: rebuild with "
                f"TORCH_CUDA_ARCH_LIST={gpu['capability']}"
            )
    return {
        "version": gralora.__version__,
        "torch": torch.__version__,
        "torch_built": built["torch_version"],
        "cuda_built": built["cuda_built"],
        "cuda_version": built["cuda_version"] or None,
        "cuda_architectures": built["cuda_architectures"],
        "cuda_ptx": built["cuda_ptx"],
        "gpus": gpus,
        "packages": {name: find_spec(name) is not None for name in _COMPANIONS},
        "notes": notes,
    }
