"""Checkpoints of accelerate that hold the adapter instead of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file

import gralora

COMPLETE = "adapter/adapter_model.safetensors"


def keep_adapters_only(accelerator: Accelerator) -> None:
    """Have ``save_state`` and ``load_state`` take the adapters of models, not their frozen weights.

    An adapter is a folder that PEFT reads as well.
    """

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        # What is left in the list would be saved.
        weights.clear()
        if accelerator.is_main_process:
            for model in models:
                gralora.save_adapter(model, Path(folder, "adapter"))

    def load(models: list[Any], folder: str) -> None:
        state = load_file(Path(folder, COMPLETE))
        while models:
            gralora.load_adapter_state_dict(models.pop(), state)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save(accelerator: Accelerator, folder: Path) -> None:
    """Save the state under another name first, so that no half checkpoint is ever resumed."""
    partial = folder.with_name(f"{folder.name}.part")
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(folder)
