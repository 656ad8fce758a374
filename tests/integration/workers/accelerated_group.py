"""PEFT's language models that every process trains, accelerated in a group, as they are alone."""

from __future__ import annotations

import warnings

import torch
from peft import GraloraConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from training_group import language_model

_TARGETS = ["q_proj", "v_proj", "down_proj"]
CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=_TARGETS),
    "gralora": GraloraConfig(
        r=8, gralora_k=2, hybrid_r=2, alpha=16, init_weights=False, target_modules=_TARGETS
    ),
}
# Kind of gradient checkpointing, by `use_reentrant`.
CHECKPOINTING = {"none": None, "reentrant": True, "not-reentrant": False}


def peft_model(kind: str, reentrant: bool | None = None) -> PeftModel:
    """PEFT's model, not accelerated, in training mode, the same in each process."""
    base = language_model()
    torch.manual_seed(1)
    model = get_peft_model(base, CONFIGS[kind])
    if reentrant is not None:
        model.enable_input_require_grads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def adapters(model: PeftModel) -> dict[str, Tensor]:
    """Every parameter that trains."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
