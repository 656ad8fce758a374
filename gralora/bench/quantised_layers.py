"""Plain layers made into those of bitsandbytes and torchao, with the settings most people use.

Each raises UnavailableError where the library, the device or the dtype does not allow it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor, nn

from gralora.bench.case import Case, UnavailableError


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UnavailableError(
            f"{package} cannot be imported: {error} (pip install {package})"
        ) from error


def bnb_int8(linear: nn.Linear, case: Case) -> nn.Linear:
    """LLM.int8() with the threshold for outliers that transformers sets."""
    bnb = _library("bitsandbytes.nn")
    layer: nn.Linear = bnb.Linear8bitLt(
        case.in_features, case.out_features, bias=False, has_fp16_weights=False, threshold=6.0
    )
    layer.weight = bnb.Int8Params(
        linear.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False
    )
    return layer.to(linear.weight.device)


def bnb_nf4(linear: nn.Linear, case: Case) -> nn.Linear:
    """QLoRA's: NF4 with nested statistics, computing in x's dtype."""
    bnb = _library("bitsandbytes.nn")
    layer: nn.Linear = bnb.Linear4bit(
        case.in_features,
        case.out_features,
        bias=False,
        quant_type="nf4",
        compute_dtype=case.torch_dtype,
    )
    layer.weight = bnb.Params4bit(
        linear.weight.detach().cpu(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=True,
        module=layer,
    )
    return layer.to(linear.weight.device)


def torchao_int8(linear: nn.Linear, case: Case) -> nn.Linear:
    """Weight-only int8 with a scale for each row."""
    quantization = _library("torchao.quantization")
    return _by_torchao(linear, quantization.Int8WeightOnlyConfig())


def torchao_int4(linear: nn.Linear, case: Case) -> nn.Linear:
    """Weight-only int4 in groups of 128, packed for torch's own product of it."""
    quantization = _library("torchao.quantization")
    if linear.weight.device.type != "cuda":
        raise UnavailableError("torchao's int4 runs on a GPU only")
    if case.dtype != "bf16":
        raise UnavailableError(f"torchao's int4 computes in bf16, got {case.dtype}")
    return _by_torchao(
        linear,
        quantization.Int4WeightOnlyConfig(
            group_size=128, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        ),
    )


def _by_torchao(linear: nn.Linear, config: Any) -> nn.Linear:
    _library("torchao.quantization").quantize_(linear, config)
    # It passes over a layer whose sizes do not suit it, without an error.
    if type(linear.weight) in (nn.Parameter, Tensor):
        raise UnavailableError(
            f"torchao did not quantise a layer of {linear.in_features} in-features and "
            f"{linear.out_features} out-features"
        )
    return linear.requires_grad_(False)
