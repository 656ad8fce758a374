"""Loads the compiled part, or says in one sentence why it cannot be loaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

_REBUILD = (
    "rebuild it for this torch with `pip install --force-reinstall --no-deps --no-cache-dir .` "
    "in gralora's source folder"
)


def _read_build_info() -> ModuleType:
    try:
        return import_module("gralora._build_info")
    except ModuleNotFoundError:
        raise ImportError(_describe_missing()) from None


def _describe_missing() -> str:
    return (
        f"gralora's compiled part is missing from {Path(__file__).resolve().parent}: run "
        "`pip install .` in gralora's source folder and start Python from another folder, since "
        "the source folder itself holds no compiled module"
    )


build_info = _read_build_info()


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def describe_mismatch(
    torch_built: str, cuda_built: str, torch_running: str, cuda_running: str | None
) -> str | None:
    """Say why an extension cannot run under this torch, or return None where it can.

    Args:
        torch_built: torch version of the build, such as ``"2.14.1+cu130"``.
        cuda_built: CUDA version of the build, ``""`` for a CPU build.
        torch_running: ``torch.__version__`` of this process.
        cuda_running: ``torch.version.cuda`` of this process.

    """
    if _minor(torch_built) != _minor(torch_running):
        return (
            f"gralora was built for torch {_minor(torch_built)} ({torch_built}), but torch "
            f"{torch_running} is running: {_REBUILD}"
        )
    if cuda_built and cuda_built.split(".")[0] != (cuda_running or "").split(".")[0]:
        running = f"one for CUDA {cuda_running}" if cuda_running else "a CPU build"
        return (
            f"gralora was built for a torch with CUDA {cuda_built}, but torch {torch_running} is "
            f"{running}: {_REBUILD}"
        )
    return None


def load() -> None:
    """Register ``torch.ops.gralora``.

    Raises:
        ImportError: the extension was built for another torch, or is missing.

    """
    mismatch = describe_mismatch(
        build_info.TORCH_VERSION,
        build_info.CUDA_VERSION if build_info.CUDA_BUILT else "",
        torch.__version__,
        torch.version.cuda,
    )
    if mismatch is not None:
        raise ImportError(mismatch)
    try:
        import_module("gralora._C")
    except ModuleNotFoundError:
        raise ImportError(_describe_missing()) from None
