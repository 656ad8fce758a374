"""Small models, PEFT's adapters on them, and outputs to compare."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import GraloraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import gralora.storage.adapter_files as ours
from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}
TOKENS = torch.arange(20).reshape(2, 10)


def llama(**settings: Any) -> LlamaForCausalLM:
    """A causal language model with fixed weights and biases that are not zero."""
    return _with_biases(LlamaForCausalLM(LlamaConfig(**{**SMALL, **settings})))


def classifier(**settings: Any) -> LlamaForSequenceClassification:
    """A sequence classifier with fixed weights."""
    return _with_biases(LlamaForSequenceClassification(LlamaConfig(**{**SMALL, **settings})))


def _with_biases(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def outputs(model: nn.Module) -> Tensor:
    """Logits for fixed tokens."""
    with torch.no_grad():
        return model(TOKENS).logits


def train_like(model: nn.Module, seed: int = 2) -> None:
    """Give everything that trains other values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.2 * noise.to(parameter.dtype))


def peft_saved(base: nn.Module, directory: Path, **settings: Any) -> Tensor:
    """Save a trained adapter with PEFT; returns the adapted model's outputs."""
    model = peft_model(base, **settings)
    result = outputs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return result


def peft_model(base: nn.Module, **settings: Any) -> PeftModel:
    """PEFT's model with a trained adapter."""
    config = GraloraConfig(
        **{"r": 8, "gralora_k": 2, "alpha": 16, "target_modules": ["q_proj", "v_proj"], **settings}
    )
    model = get_peft_model(copy.deepcopy(base), config)
    train_like(model)
    return model.eval()


def peft_loaded(base: nn.Module, directory: Path) -> PeftModel:
    """PEFT's model from files; a warning of PEFT about the files is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        warnings.filterwarnings("error", message="Unexpected keyword arguments")
        return PeftModel.from_pretrained(copy.deepcopy(base), directory).eval()


def our_model(base: nn.Module, adapter_name: str = "default", **settings: Any) -> nn.Module:
    """Our model with a trained adapter."""
    config = GraLoRAConfig(
        **{"r": 8, "k": 2, "alpha": 16, "target_modules": ["q_proj", "v_proj"], **settings}
    )
    torch.manual_seed(2)
    model = inject(copy.deepcopy(base), config, adapter_name)
    train_like(model)
    return model.eval()


def our_loaded(base: nn.Module, directory: Path, **settings: Any) -> nn.Module:
    """Our model from files."""
    return ours.load_adapter(copy.deepcopy(base), directory, **settings).eval()


def layout(directory: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every key of a saved adapter, as the safetensors package reads them."""
    with safe_open(directory / "adapter_model.safetensors", "pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        return {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a refused call may not change: values, their identity, types, what trains."""
    return {
        "types": {name: type(module) for name, module in model.named_modules()},
        "values": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "parameters": {
            name: (id(value), value.requires_grad) for name, value in model.named_parameters()
        },
        "attributes": set(vars(model)),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """The model is what `snapshot` saw."""
    after = snapshot(model)
    for what in ("types", "parameters", "attributes"):
        assert after[what] == before[what]
    assert after["values"].keys() == before["values"].keys()
    for name, value in before["values"].items():
        assert torch.equal(after["values"][name], value), name
