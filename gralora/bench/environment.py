"""What a result was measured on, and how it is written to disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

# The number changes when a reader of older result files would misread newer ones.
SCHEMA = 1

_PACKAGES = (
    "gralora",
    "torch",
    "peft",
    "transformers",
    "bitsandbytes",
    "torchao",
    "numpy",
)
_GPU_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "temperature.gpu",
)


def environment(
    device: torch.device, command: Sequence[str], checkout: Path | None = None
) -> dict[str, Any]:
    """Describe machine, software and time, once at the start of a run.

    Args:
        device: what is measured.
        command: the command line, recorded without the folders that lie on this machine alone.
        checkout: see `commit`.
    """
    record: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(map(_without_folder, command)),
        "commit": commit(checkout),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record["gpu"] = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "torch_cuda": torch.version.cuda,
            "state": gpu_state(device),
        }
    return record


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Clocks, power and driver of a CUDA device as nvidia-smi prints them; None without it."""
    identity = str(torch.cuda.get_device_properties(device).uuid)
    command = [
        "nvidia-smi",
        f"--id=GPU-{identity.removeprefix('GPU-')}",
        f"--query-gpu={','.join(_GPU_FIELDS)}",
        "--format=csv,noheader",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(_GPU_FIELDS, answer.stdout.strip().split(", "), strict=False))


def commit(checkout: Path | None) -> str:
    """The checkout's commit, with ``+changes`` where files differ from it.

    ``GRALORA_COMMIT`` names it where the sources were copied without their history. Without a
    checkout it is ``"unknown"``: the package's version, among the packages, says what was measured.
    """
    given = os.environ.get("GRALORA_COMMIT")
    if given:
        return given
    head = _git(checkout, "rev-parse", "HEAD") if checkout else None
    if checkout is None or head is None:
        return "unknown"
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return head + ("+changes" if changed else "")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write beside ``path`` and rename: an interrupted run leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
        # mkstemp makes a file that its owner alone can read; results are for everyone.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _without_folder(argument: str) -> str:
    return Path(argument).name if os.path.isabs(argument) else argument


def _git(checkout: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(checkout), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


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
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
