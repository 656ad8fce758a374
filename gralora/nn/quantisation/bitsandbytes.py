"""Weights of bitsandbytes' ``Linear8bitLt`` and ``Linear4bit`` (NF4 and FP4).

Checked against bitsandbytes 0.50.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gralora.nn.quantisation.codec import Codec


class EightBitState(NamedTuple):
    """An 8-bit weight.

    Attributes:
        codes: ``[M, N]``, int8.
        scales: ``[M]``, float32: the largest magnitude of each row, which code 127 stands for.

    """

    codes: Tensor
    scales: Tensor


class EightBit(Codec):
    """LLM.int8(): rows of int8 codes with a scale each."""

    def why_not(self, module: Any) -> str | None:
        """Refuse a layer that is not quantised (yet)."""
        if module.state.has_fp16_weights or module.weight.dtype != torch.int8:
            return (
                "the weight of a Linear8bitLt must be quantised, got "
                f"{module.weight.dtype} (move the layer to a device with has_fp16_weights=False)"
            )
        return _why_no_values(module)

    def read(self, module: Any) -> EightBitState:
        """Codes and scales, which lie with the weight before the first call and then beside it."""
        weight, state = module.weight, module.state
        scales = weight.SCB if weight.SCB is not None else state.SCB
        return EightBitState(weight.data, scales)

    def install(self, module: Any, state: EightBitState) -> None:
        """Replace the weight; the next call reads it anew."""
        from bitsandbytes.nn import Int8Params

        module.weight = Int8Params(
            state.codes,
            requires_grad=False,
            has_fp16_weights=False,
            CB=state.codes,
            SCB=state.scales,
        )
        module.state.reset_grads()

    def moved(self, state: EightBitState, device: torch.device) -> EightBitState:
        """Both tensors there."""
        return EightBitState(state.codes.to(device), state.scales.to(device))

    def dequantise(self, state: EightBitState, module: nn.Module) -> Tensor:
        """``codes * scales / 127``."""
        return state.codes.float() * (state.scales.float() / 127).unsqueeze(1)

    def quantise(self, weight: Tensor, module: nn.Module) -> EightBitState:
        """Round to the nearest codes, from float16 as bitsandbytes does."""
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, scales, _ = int8_vectorwise_quant(weight.to(torch.float16))
        return EightBitState(codes, scales)


class FourBit(Codec):
    """QLoRA's NF4 and FP4; a state is a ``Params4bit``."""

    def why_not(self, module: Any) -> str | None:
        """Refuse a layer that is not quantised yet."""
        if getattr(module.weight, "quant_state", None) is None:
            return (
                "the weight of a Linear4bit must be quantised, got none of its statistics (move "
                "the layer to a device first)"
            )
        return _why_no_values(module)

    def read(self, module: Any) -> Any:
        """The weight, in whatever layout it has."""
        return module.weight

    def install(self, module: Any, state: Any) -> None:
        """Replace the weight, and the statistics that the layer holds a second time."""
        module.weight = state
        module.quant_state = state.quant_state

    def moved(self, state: Any, device: torch.device) -> Any:
        """A copy there, since ``Params4bit.to`` moves the statistics of its own."""
        if state.device == device:
            return state
        return copy.deepcopy(_unpacked(state)).to(device)

    def dequantise(self, state: Any, module: Any) -> Tensor:
        """In the dtype that the weight had, as a call does, then in float32."""
        from bitsandbytes.functional import dequantize_4bit

        state = _unpacked(state)
        weight: Tensor = dequantize_4bit(state.data, state.quant_state)
        return weight.to(torch.float32, copy=True)

    def quantise(self, weight: Tensor, module: Any) -> Any:
        """With the block size, data type, nested statistics and storage of the weight now."""
        from bitsandbytes.functional import quantize_4bit
        from bitsandbytes.nn import Params4bit

        like = _unpacked(module.weight)
        settings = {
            "blocksize": like.quant_state.blocksize,
            "compress_statistics": like.quant_state.nested,
            "quant_type": like.quant_state.quant_type,
            "quant_storage": like.dtype,
        }
        data, quant_state = quantize_4bit(weight, **settings)
        quant_state.dtype = like.quant_state.dtype
        return Params4bit(
            data,
            requires_grad=False,
            quant_state=quant_state,
            module=like.module,
            bnb_quantized=True,
            **settings,
        )


def _unpacked(state: Any) -> Any:
    """The state in the general layout, from a copy where bitsandbytes packed it for the CPU.

    Unpacking rounds statistics that were nested, so that a packed weight stays what it is.
    """
    if not getattr(state.quant_state, "packing_format_for_cpu", False):
        return state
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    state = copy.deepcopy(state)
    state.data, state.quant_state = _convert_weight_packed_for_cpu_inverse(
        state.data, state.quant_state
    )
    return state


def _why_no_values(module: Any) -> str | None:
    if module.weight.is_meta:
        return "the weight is on the meta device and has no values"
    return None
