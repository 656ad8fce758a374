"""Adapters for the readers of pages, of the model that `save_tiny_llama` saves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gralora


def _change(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def _base(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def save_ours(base: Path, directory: Path, seed: int = 1, **settings: Any) -> None:
    """Save a trained adapter of the query and value projections."""
    config = gralora.GraLoRAConfig(**{"target_modules": ["q_proj", "v_proj"], **settings})
    model = gralora.inject(_base(base), config)
    _change(model, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gralora.save_adapter(model, directory)


def save_pefts(base: Path, directory: Path, method: str, **settings: Any) -> None:
    """Save a trained adapter of PEFT: `method` is the name of its config's class."""
    import peft

    config = getattr(peft, method)(target_modules=["q_proj", "v_proj"], **settings)
    model = peft.get_peft_model(_base(base), config)
    _change(model, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)


def make_forks(directory: Path) -> None:
    """Turn PEFT's config into that of the authors' fork for the same adapter."""
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    config["gralora_alpha"] = config.pop("alpha")
    config["r"] += config["hybrid_r"]
    path.write_text(json.dumps(config))
