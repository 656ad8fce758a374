"""Quantised linear layers of bitsandbytes and torchao, and the weights that they stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

IN, OUT = 64, 32


def _weight() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.1 * torch.randn(OUT, IN, generator=generator)


def four_bit() -> nn.Module:
    """NF4 of bitsandbytes."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = bnb.nn.Linear4bit(IN, OUT, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(_weight(), requires_grad=False, quant_type="nf4", module=layer)
    return layer.to("cpu")


def eight_bit() -> nn.Module:
    """LLM.int8() of bitsandbytes."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(_weight(), requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


def int8() -> nn.Module:
    """Weight-only int8 of torchao."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    layer = nn.Linear(IN, OUT)
    layer.weight = nn.Parameter(_weight())
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    return layer


def int4() -> nn.Module:
    """Weight-only int4 of torchao, of a kind that the CPU can hold."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    layer = nn.Linear(IN, OUT)
    config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4)
    quantization.quantize_(layer, config)
    return layer


QUANTISED: dict[str, Callable[[], nn.Module]] = {
    "bitsandbytes-4-bit": four_bit,
    "bitsandbytes-8-bit": eight_bit,
    "torchao-int8": int8,
}


def dense(layer: Any) -> Tensor:
    """The weight [M, N] that a quantised layer stands for, in float64, by the library's means."""
    kind = type(layer).__name__
    if kind == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        weight = layer.weight
        return dequantize_4bit(weight.data, copy.deepcopy(weight.quant_state)).double()
    if kind == "Linear8bitLt":
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        return layer.weight.data.double() * scales.double()[:, None] / 127
    return layer.weight.detach().dequantize().double()
