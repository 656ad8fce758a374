"""Weights that torchao quantised: tensor subclasses in an ``nn.Linear``.

Checked against torchao 0.18.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gralora.nn.quantisation.codec import Codec


class TorchAO(Codec):
    """torchao's int8; a state is the weight parameter."""

    def why_not(self, module: Any) -> str | None:
        """Refuse all but int8 by rows, groups or as a whole."""
        kind = type(module.weight).__name__
        if kind != "Int8Tensor":
            return (
                f"a weight of torchao must be int8 to be merged into, got a {kind} (merge the "
                "adapter into the unquantised checkpoint, and quantise the result)"
            )
        if module.weight.is_meta:
            return "the weight is on the meta device and has no values"
        if module.weight.act_pre_scale is not None:
            return (
                "a weight of torchao must not scale the activations, got one with act_pre_scale "
                "(merge the adapter into the unquantised checkpoint, and quantise the result)"
            )
        return None

    def read(self, module: Any) -> Any:
        """The parameter."""
        return module.weight

    def install(self, module: Any, state: Any) -> None:
        """Replace the parameter."""
        module.weight = state

    def moved(self, state: Any, device: torch.device) -> Any:
        """The parameter there."""
        if state.device == device:
            return state
        return nn.Parameter(state.detach().to(device), requires_grad=False)

    def dequantise(self, state: Any, module: nn.Module) -> Tensor:
        """In the dtype that the weight had, as a call does, then in float32."""
        weight: Tensor = state.detach().dequantize()
        return weight.to(torch.float32, copy=True)

    def quantise(self, weight: Tensor, module: Any) -> Any:
        """With the blocks, the symmetry and the range of the weight now."""
        from torchao.quantization import Int8Tensor
        from torchao.quantization.quant_primitives import MappingType

        like = module.weight
        symmetric = like.zero_point is None or not bool(like.zero_point.any())
        quantised = Int8Tensor.from_hp(
            weight.to(like.dtype),
            _granularity(tuple(like.block_size), tuple(like.shape)),
            mapping_type=MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC,
            act_quant_kwargs=like.act_quant_kwargs,
            act_quant_scale=like.act_quant_scale,
            act_quant_zero_point=like.act_quant_zero_point,
            reduce_range=like.reduce_range,
        )
        return nn.Parameter(quantised, requires_grad=False)


def _granularity(block: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    from torchao.quantization.granularity import PerGroup, PerRow, PerTensor

    if block == shape and block[0] > 1:
        return PerTensor()
    return PerRow() if block[-1] == shape[-1] else PerGroup(block[-1])
