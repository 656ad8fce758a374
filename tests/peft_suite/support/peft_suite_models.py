"""Stand-ins for the tiny models that PEFT's tests take from the Hub.

Their weights are random, as those of the originals are. They lie in a cache of the Hub's layout, so
that `from_pretrained` finds them while it is offline.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

# Any commit will do for a cache.
_COMMIT = "0" * 40

_SIZES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1023,
    "pad_token_id": 1023,
}
_LLAMA = {**_SIZES, "intermediate_size": 128, "num_key_value_heads": 2}
_BERT = {**_SIZES, "intermediate_size": 128, "pad_token_id": 1}
_GEMMA = {**_LLAMA, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
_OPT = {**_SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.1}
_BART = {
    **_OPT,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 0,
}
_T5 = {
    "vocab_size": 1024,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}

# Name on the Hub: class of transformers, settings of its configuration.
_MODELS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", _OPT),
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", {**_OPT, "num_hidden_layers": 12}),
    "facebook/opt-125m": ("OPTForCausalLM", {**_OPT, "num_hidden_layers": 12}),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", _SIZES),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", _SIZES),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": (
        "GPTJForCausalLM",
        {**_SIZES, "rotary_dim": 8},
    ),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _LLAMA),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _LLAMA),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", _LLAMA),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", _GEMMA),
    "peft-internal-testing/tiny-random-BloomForCausalLM": (
        "BloomForCausalLM",
        {**_SIZES, "n_layer": 2, "n_head": 4},
    ),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", _BERT),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", _BERT),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", _BERT),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", _BERT),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (
        "BertForSequenceClassification",
        _BERT,
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        _BERT,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "LlamaForSequenceClassification",
        _LLAMA,
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": (
        "T5ForConditionalGeneration",
        _T5,
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        _T5,
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        "BartForConditionalGeneration",
        _BART,
    ),
}


def write_models(hub: Path) -> None:
    """Write every stand-in that is missing into a cache of the Hub.

    Args:
        hub: the cache, what `HF_HUB_CACHE` names.

    """
    for name, (kind, settings) in _MODELS.items():
        target = hub / f"models--{name.replace('/', '--')}"
        if not target.exists():
            _write(target, kind, settings)


def _write(target: Path, kind: str, settings: Mapping[str, Any]) -> None:
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        copy = Path(scratch) / "copy"
        model.save_pretrained(copy / "snapshots" / _COMMIT)
        (copy / "refs").mkdir()
        (copy / "refs" / "main").write_text(_COMMIT, encoding="utf-8")
        copy.rename(target)
