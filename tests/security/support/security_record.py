"""The record of a run over files that were changed at random: what was tried, with what."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gralora.bench.environment import environment, write_json

_CHECKOUT = Path(__file__).parents[3]
_PACKAGES = ("safetensors", "hypothesis")


def started(command: str) -> dict[str, Any]:
    """What a run is made with: to be asked when it starts, since sources may change meanwhile."""
    found = environment(torch.device("cpu"), [command], _CHECKOUT)
    found["packages"] |= {name: version(name) for name in _PACKAGES}
    return found


def add_to_record(path: Path, entry: str, counts: Counter[str], found: dict[str, Any]) -> None:
    """Append one entry's counts to a JSON file; several processes may do so at once.

    Args:
        path: of the file, which is made with its folder if need be.
        entry: whose files were changed.
        counts: of ``"refused"`` and ``"taken"`` inputs.
        found: what :func:`started` gave.

    """
    run = {
        "entry": entry,
        "inputs": counts.total(),
        "refused": counts["refused"],
        "accepted": counts["taken"],
        "environment": found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
        write_json(path, {"runs": [*runs, run]})
