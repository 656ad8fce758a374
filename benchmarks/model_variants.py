"""The variants of an adapted decoder, all over one set of frozen weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from decoders import TARGETS, share_weights
from torch import Tensor, nn

from gralora.bench.case import SCALING, UnavailableError

_SEED = 7


@dataclass(frozen=True)
class ModelVariant:
    """An adapted decoder.

    Attributes:
        name: of the variant.
        model: takes ``inputs_embeds`` ``[batch, sequence, hidden]``.
        decoder: the decoder inside, whose gradient checkpointing can be switched.
        parameters: the adapters'.
        autocast: the dtype of autocast around it, None without.
        is_gralora: whether it holds the same GraLoRA adapter as the others that say so.
    """

    name: str
    model: nn.Module
    decoder: Any
    parameters: Sequence[Tensor]
    autocast: torch.dtype | None = None
    is_gralora: bool = False


Builder = Callable[[nn.Module, int, int, torch.dtype], ModelVariant]


def _frozen(base: nn.Module, rank: int, grid: int, dtype: torch.dtype) -> ModelVariant:
    return ModelVariant("frozen", base, base, ())


def _gralora(
    base: nn.Module, rank: int, grid: int, dtype: torch.dtype, *, masters: bool = False
) -> ModelVariant:
    import gralora

    config = gralora.GraLoRAConfig(
        r=rank, k=grid, alpha=SCALING * rank, target_modules=list(TARGETS)
    )
    adapter_dtype = torch.float32 if masters else dtype
    model = gralora.inject(share_weights(base), config, adapter_dtype=adapter_dtype)
    _fill(model)
    return ModelVariant("gralora", model, model, _trainable(model), is_gralora=True)


def _peft(base: nn.Module, config: Any, *, masters: bool) -> ModelVariant:
    from peft import get_peft_model

    decoder = share_weights(base)
    model = get_peft_model(decoder, config, autocast_adapter_dtype=masters)
    _fill(model)
    return ModelVariant("peft", model, decoder, _trainable(model))


def _peft_lora(base: nn.Module, rank: int, grid: int, dtype: torch.dtype) -> ModelVariant:
    config = _peft_config("LoraConfig", r=rank, lora_alpha=SCALING * rank)
    return _peft(base, config, masters=False)


def _peft_gralora(
    base: nn.Module, rank: int, grid: int, dtype: torch.dtype, *, masters: bool = False
) -> ModelVariant:
    config = _peft_config("GraloraConfig", r=rank, gralora_k=grid, alpha=SCALING * rank, hybrid_r=0)
    built = _peft(base, config, masters=masters)
    return ModelVariant("peft", built.model, built.decoder, built.parameters, is_gralora=True)


def _peft_gralora_autocast(
    base: nn.Module, rank: int, grid: int, dtype: torch.dtype
) -> ModelVariant:
    built = _peft_gralora(base, rank, grid, dtype, masters=True)
    return ModelVariant(
        "peft", built.model, built.decoder, built.parameters, autocast=dtype, is_gralora=True
    )


def _peft_accelerated(base: nn.Module, rank: int, grid: int, dtype: torch.dtype) -> ModelVariant:
    built = _peft_gralora(base, rank, grid, dtype)
    from gralora.integrations.peft import accelerate

    accelerate(built.model)
    return ModelVariant("peft", built.model, built.decoder, built.parameters, is_gralora=True)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _fill(model: nn.Module) -> None:
    """Random factors, the same in all variants of a kind: B starts as zeros, which draw less power.

    A GraLoRA factor's middle axis is summed over, a LoRA factor's last.
    """
    factors = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for index, (_, factor) in enumerate(factors):
        generator = torch.Generator(factor.device).manual_seed(_SEED + index)
        fan_in = factor.shape[-1] if factor.dim() == 2 else factor.shape[-2]
        drawn = torch.randn(factor.shape, generator=generator, device=factor.device)
        with torch.no_grad():
            factor.copy_(0.2 * fan_in**-0.5 * drawn)


def _peft_config(name: str, **values: object) -> Any:
    try:
        import peft
    except ImportError as error:
        raise UnavailableError(f"peft cannot be imported: {error}") from error
    if not hasattr(peft, name):
        raise UnavailableError(f"peft {peft.__version__} has no {name}")
    return getattr(peft, name)(target_modules=list(TARGETS), **values)


# In the order of the tables.
BUILDERS: dict[str, Builder] = {
    "frozen": _frozen,
    "peft_lora": _peft_lora,
    "peft_gralora": _peft_gralora,
    "peft_gralora_fp32": functools.partial(_peft_gralora, masters=True),
    "peft_gralora_autocast": _peft_gralora_autocast,
    "peft_accelerated": _peft_accelerated,
    "gralora": _gralora,
    "gralora_fp32": functools.partial(_gralora, masters=True),
}


def build(name: str, base: nn.Module, rank: int, grid: int, dtype: torch.dtype) -> ModelVariant:
    """Build a variant over the weights of ``base``.

    Raises:
        UnavailableError: its package is missing, or it makes no sense beside this dtype.
    """
    if name.endswith(("_fp32", "_autocast")) and dtype.itemsize != 2:
        raise UnavailableError("fp32 adapters are the usual ones beside such weights")
    return dataclasses.replace(BUILDERS[name](base, rank, grid, dtype), name=name)
