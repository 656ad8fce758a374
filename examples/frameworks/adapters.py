"""PEFT's GraLoRA in a model, computed by gralora's operators."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import smollm2
from finetuning.errors import FinetuneError
from peft import GraloraConfig, PeftModel, get_peft_model

from gralora.integrations.peft import accelerate, report


def adapt(model: Any, options: argparse.Namespace) -> PeftModel:
    """Give every linear layer of `model` but its head an adapter; return PEFT's model.

    Raises:
        FinetuneError: the adapter does not fit the model.

    """
    config = GraloraConfig(
        r=options.r,
        gralora_k=options.k,
        alpha=options.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model.config.use_cache = False
    try:
        with warnings.catch_warnings():
            # PEFT asks models by names that transformers 5 calls old.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise FinetuneError(f"-r {options.r}, -k {options.k}: {error}") from error
    # Loaded from a file, the default model would pass for the folder that holds the file.
    config.base_model_name_or_path = options.model
    return accelerate(adapted)


def save(model: PeftModel, options: argparse.Namespace) -> None:
    """Write the adapter to ``<output>/adapter``, as PEFT does."""
    model.peft_config["default"].base_model_name_or_path = options.model or smollm2.NAME
    # Embeddings are not adapted; to find that out PEFT would ask the Hub for the base model.
    model.save_pretrained(options.output / "adapter", save_embedding_layers=False)


def ways(model: PeftModel) -> dict[str, int]:
    """How many layers take which way of :func:`gralora.integrations.peft.report`."""
    return report(model).counts()
