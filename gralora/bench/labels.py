"""What tables and plots call the variants."""

from __future__ import annotations

LABELS = {
    "base": "frozen layer alone",
    "frozen": "frozen model",
    "cublas": "library calls by hand",
    "peft_lora": "PEFT LoRA",
    "peft_gralora": "PEFT GraLoRA",
    "peft_gralora_fp32": "PEFT GraLoRA, fp32 adapters",
    "peft_gralora_autocast": "PEFT GraLoRA, fp32, autocast",
    "peft_gralora_compiled": "PEFT GraLoRA, torch.compile",
    "peft_accelerated": "PEFT GraLoRA, accelerated",
    "gralora": "gralora",
    "gralora_fp32": "gralora, fp32 adapters",
    "gralora_functional": "gralora, functional call",
    "gralora_recomputed": "gralora, latents made again",
    "peft_gralora_dropout": "PEFT GraLoRA, dropout",
    "gralora_dropout": "gralora, dropout",
    "peft_gralora_hybrid": "PEFT GraLoRA, hybrid",
    "gralora_hybrid": "gralora, hybrid",
    "gralora_aten": "gralora, library calls forced",
    "gralora_sm80": "gralora, kernels of 8.0 forced",
    "gralora_sm90": "gralora, kernels of 9.0a forced",
    "gralora_shared": "gralora, computed together",
    "gralora_shared_fp32": "gralora, computed together, fp32 adapters",
    "chosen": "gralora, as chosen",
    "aten": "library calls",
    "sm80": "gralora's kernels",
    "sm90": "gralora's kernels of 9.0a",
}


def label_of(name: str) -> str:
    """The words for a variant or a path; the name itself where there are none."""
    return LABELS.get(name, name)
