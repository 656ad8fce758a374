"""The four ways to fine-tune: what is attached to the model, and what trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import smollm2
import torch
from torch import nn

import gralora
from finetuning.errors import FinetuneError

if TYPE_CHECKING:
    from finetuning.options import Options

METHODS = ("gralora", "hybrid", "lora", "full")
DEFAULT_LR = {"gralora": 1e-3, "hybrid": 1e-3, "lora": 1e-3, "full": 5e-5}


def adapter_config(options: Options) -> gralora.GraLoRAConfig | None:
    """The adapter of a method; None for ``full``.

    All adapters have as many parameters, ``r * (in + out)`` a layer, and the same scale,
    ``alpha / r``.

    Raises:
        FinetuneError: `r`, `k` and `alpha` do not fit together.

    """
    if options.method == "full":
        return None
    r, k, hybrid_r = options.r, options.k, 0
    if options.method == "lora":
        k = 1
    if options.method == "hybrid":
        blocks = 1 if k == "auto" else k
        r = max(options.r // 2 // blocks, 1) * blocks
        hybrid_r = options.r - r
        if hybrid_r < 1:
            raise FinetuneError(f"--method hybrid: r must be above k, got -r {options.r}, -k {k}")
    alpha = 2 * options.r if options.alpha is None else options.alpha
    try:
        return gralora.GraLoRAConfig(
            r=r,
            k=k,
            alpha=alpha,
            hybrid_r=hybrid_r,
            # Loaded from a file, the default model would pass for the folder that holds the file.
            base_model_name_or_path=options.model or smollm2.NAME,
            task_type="CAUSAL_LM",
        )
    except (TypeError, ValueError) as error:
        raise FinetuneError(str(error)) from error


def make_trainable(
    model: nn.Module, config: gralora.GraLoRAConfig | None
) -> dict[str, nn.Parameter]:
    """Attach the adapter, or thaw the whole model; return what trains by name.

    Raises:
        FinetuneError: the adapter does not fit the model.

    """
    if config is None:
        model.requires_grad_(True)
    else:
        try:
            gralora.inject(model, config)
        except (TypeError, ValueError) as error:
            raise FinetuneError(str(error)) from error
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def weights_dtype(method: str, compute: torch.dtype) -> torch.dtype:
    """The dtype to load the model in: what trains is fp32, and with ``full`` everything trains."""
    return torch.float32 if method == "full" else compute
