"""Runs of the examples of frameworks in the process of the tests."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = 6
HALF = STEPS // 2
PACKAGES = {
    "trainer": ("accelerate", "peft", "transformers"),
    "trl": ("accelerate", "datasets", "peft", "transformers", "trl"),
    "accelerate": ("accelerate", "transformers"),
    "diffusion": ("accelerate", "diffusers"),
}


@dataclass(frozen=True)
class FrameworkRun:
    """A finished run."""

    folder: Path
    record: dict[str, Any]

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        """Tensors of the saved adapter."""
        from safetensors.torch import load_file

        return load_file(self.folder / "adapter" / "adapter_model.safetensors")


def options_of(example: str, model: Path, text: Path) -> list[str]:
    """The command line of a run that takes a second, save for its folder.

    TRL's prompts and completions are made of the words of `text`.
    """
    common = ["--steps", str(STEPS), "--save-every", str(HALF), "--device", "cpu", "-r", "8"]
    common += ["--lr", "1e-2"]
    if example == "diffusion":
        return [*common, "--base-steps", "10", "--batch", "8", "--held-out", "8"]
    language = [*common, "--model", str(model), "--batch", "4"]
    if example == "trl":
        return [*language, "--data", str(_as_tasks(text)), "--seq-len", "64", "--held-out", "4"]
    return [*language, "--text", str(text), "--seq-len", "32"]


def _as_tasks(text: Path) -> Path:
    """Prompts and completions from the words of a text, written beside it."""
    words = text.read_text(encoding="utf-8").split()
    rows = [
        {"prompt": " ".join(words[i : i + 4]), "completion": " " + " ".join(words[i + 4 : i + 9])}
        for i in range(0, 360, 9)
    ]
    path = text.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main(example: str, *options: str) -> None:
    """What the script does when it is started with these options."""
    for package in PACKAGES[example]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    script = importlib.import_module(f"finetune_{example}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"finetune_{example}.py", *options])
        try:
            script.main()
        finally:
            forget_accelerate()


def finish_example(example: str, folder: Path, *options: str) -> FrameworkRun:
    """Run the script to its end, successfully."""
    main(example, *options, "--output", str(folder))
    return FrameworkRun(folder, json.loads((folder / "run.json").read_text(encoding="utf-8")))


def stop_halfway(run: FrameworkRun, folder: Path) -> None:
    """Make `folder` what a run that was killed after its first checkpoint leaves behind."""
    shutil.copytree(run.folder, folder, dirs_exist_ok=True)
    for name in (f"checkpoint-{STEPS}", "adapter"):
        shutil.rmtree(folder / name)
    (folder / "run.json").unlink()


def forget_accelerate() -> None:
    """The device is chosen once a process, and by a run of another example perhaps otherwise."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
