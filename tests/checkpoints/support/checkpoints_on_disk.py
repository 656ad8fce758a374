"""Small models as folders of several shards, adapters for them, and what merging must give."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers import LlamaForCausalLM as Llama

import gralora

TOKENS = torch.arange(20).reshape(2, 10)


def shake(model: nn.Module, seed: int, scale: float = 0.2) -> None:
    """Add fixed noise to what trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(scale * noise.to(parameter.dtype))


def llama(dtype: torch.dtype = torch.float32, **settings: Any) -> Llama:
    """A Llama with fixed weights, 32 wide and two layers deep; its head is its own."""
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**{**small, **settings}))
    shake(model, 1, 0.1)
    return model.to(dtype).eval()


def gpt2(**settings: Any) -> GPT2LMHeadModel:
    """A GPT-2 with fixed weights, 32 wide: Conv1D layers, square and not, and a tied head."""
    torch.manual_seed(0)
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**{**small, **settings})).eval()


def save_base(model: Any, directory: Path, shard: str = "20KB") -> Path:
    """Save a model in shards of at most this size; returns the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, max_shard_size=shard)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    return directory


def adapted(base: nn.Module, seed: int = 2, **settings: Any) -> nn.Module:
    """The model with an adapter that has been trained."""
    defaults = {"r": 8, "k": 2, "alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    torch.manual_seed(seed)
    model = gralora.inject(copy.deepcopy(base), gralora.GraLoRAConfig(**{**defaults, **settings}))
    shake(model, seed)
    return model.eval()


def save_adapter(model: nn.Module, directory: Path) -> Path:
    """Save the model's adapter; returns the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gralora.save_adapter(model, directory)
    return directory


def logits(model: nn.Module) -> Tensor:
    """For fixed tokens."""
    with torch.no_grad():
        return model(TOKENS).logits


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model that transformers loads."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a folder, as the safetensors package reads them."""
    return {
        key: value
        for path in sorted(directory.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def shards(directory: Path) -> list[Path]:
    """The files of weights."""
    return sorted(directory.glob("*.safetensors"))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file by its name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def workspace(out: Path) -> Path:
    """Where a merge that is not finished keeps its shards."""
    return out.parent / f".{out.name}.merging"


def plain_base(directory: Path, values: dict[str, Tensor], **config: Any) -> Path:
    """A model of one file, with a config where one is given."""
    directory.mkdir(parents=True)
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})
    if config:
        (directory / "config.json").write_text(json.dumps(config))
    return directory
