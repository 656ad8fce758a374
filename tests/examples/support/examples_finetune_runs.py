"""Runs of finetune.py on the tiny model, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "finetune.py"
WINDOW = 32


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    stdout: str

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return record


def tiny_options(model: Path, text: Path, out: Path) -> list[str]:
    """The command line of a run that takes a second."""
    options = ["--model", str(model), "--text", str(text), "--out", str(out), "--device", "cpu"]
    return [
        *options,
        "--seq-len",
        str(WINDOW),
        "--batch",
        "4",
        "--steps",
        "30",
        "-r",
        "8",
        "--lr",
        "1e-2",
    ]


# Starting Python, torch and transformers takes longer than a run.
_IN_TURN = f"""
import json, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import finetune
for options in json.loads(sys.argv[1]):
    sys.argv = ["finetune.py", *options]
    finetune.main()
"""


def start(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own."""
    return _start(str(SCRIPT), *options)


def _start(*arguments: str) -> subprocess.CompletedProcess[str]:
    # One thread: the model is too small for two, and other processes may hold the second core.
    settings = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, **settings},
    )


def finish(folder: Path, *options: str) -> Run:
    """Run the script to its end, successfully."""
    process = start(*options)
    assert process.returncode == 0, process.stderr
    return Run(folder, process.stdout)


def finish_in_turn(runs: Mapping[Path, Sequence[str]]) -> dict[Path, Run]:
    """Run the script several times in one process, which shares its output among them."""
    # -P: the working directory may be the sources, whose package has no compiled part.
    process = _start("-P", "-c", _IN_TURN, json.dumps([list(options) for options in runs.values()]))
    assert process.returncode == 0, process.stderr
    return {folder: Run(folder, process.stdout) for folder in runs}


def held_out_loss(model: Any, folder: Path, essay: Path) -> float:
    """The loss on the last tenth of the text, computed without the example's code."""
    from transformers import AutoTokenizer

    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(essay.read_text()).input_ids)
    held_out = ids[len(ids) - len(ids) // 10 :]
    windows = held_out[: len(held_out) // WINDOW * WINDOW].view(-1, WINDOW)
    with torch.no_grad():
        logits = model.eval()(input_ids=windows).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()
    ).item()
