"""``run.json``: everything a run was asked for, ran on, computed and took."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from finetuning.options import Options

# The number changes when a reader of older files would misread newer ones.
SCHEMA = 1

_PACKAGES = ("gralora", "torch", "transformers", "tokenizers", "numpy")


def options_record(options: Options) -> dict[str, Any]:
    """The options as JSON knows them."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(entry) for entry in value]
        return value if isinstance(value, (int, float, str)) or value is None else str(value)

    names = [field.name for field in dataclasses.fields(options)]
    return {name: plain(getattr(options, name)) for name in names}


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the software, as far as they can change results or times."""
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
        record["cuda"] = torch.version.cuda
    return record


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the whole process, loading included, on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write beside `path` and rename: an interrupted run leaves the old file or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
