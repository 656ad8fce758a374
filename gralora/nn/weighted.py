"""Layers that own the matrix they adapt, so that one operator computes base and adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn.residual import ResidualLayer


class WeightedLayer(ResidualLayer):
    """Layer ``y = x Wᵀ + bias`` with a frozen weight of its own.

    Args:
        in_features: ``N``.
        out_features: ``M``.
        weight: what :meth:`_matrix` makes ``W [M, N]`` of; taken over as it is, and frozen.
        bias: ``[M]`` or None; likewise.

    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, weight: nn.Parameter, bias: nn.Parameter | None
    ) -> None:
        super().__init__(in_features, out_features)
        self.weight = weight
        self.register_parameter("bias", bias)
        for parameter in (weight, bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        self._announce()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen layer and the active adapters that are not merged into its weight.

        What an adapter took out of the weight acts in its place while the adapter does not.

        Args:
            x: ``[..., N]`` in the weight's dtype (any floating dtype under autocast).

        Returns:
            ``[..., M]`` in x's dtype, or autocast's.

        """
        live = self._live_adapters()
        weight, bias = self._base()
        weight = self._matrix(weight)
        if self._taken_out and (stand_ins := self._stand_ins(live)):
            return self._add_adapters(self._with_parts(x, weight, bias, stand_ins), x, live)
        if not live:
            return nn.functional.linear(x, weight, bias)
        spec = self.adapters[live[0]]
        A, B, lora_A, lora_B = self._factors(live[0])
        y = functional.gralora_linear(
            x,
            weight,
            bias,
            A,
            B,
            scaling=spec.scaling,
            lora_A=lora_A,
            lora_B=lora_B,
            dropout_p=spec.dropout,
            training=self.training,
        )
        return self._add_adapters(y, x, live[1:]) if len(live) > 1 else y

    def _with_parts(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, names: Sequence[str]
    ) -> Tensor:
        """The frozen layer, with what those adapters took out of it."""
        scalings = [self.adapters[name].scaling for name in names]
        parts = [
            (self._factor("principal_A", name), self._factor("principal_B", name)) for name in names
        ]
        y = functional.gralora_linear(x, weight, bias, *parts[0], scaling=scalings[0])
        for part, scaling in zip(parts[1:], scalings[1:], strict=True):
            y = functional.gralora_add(y, x, *part, scaling=scaling)
        return y

    def extra_repr(self) -> str:
        """Sizes, and what is attached, active and merged."""
        sizes = (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
        return "\n".join((sizes, *self._adapter_lines()))

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight

    def _base(self) -> tuple[Tensor, Tensor | None]:
        # As in _factor: around nn.Module's slow search for parameters.
        parameters: Any = self._parameters
        if "weight" in parameters and "bias" in parameters:
            return parameters["weight"], parameters["bias"]
        return self.weight, self.bias

    @torch.no_grad()
    def _reset_base(self) -> None:
        bound = 1 / math.sqrt(self.in_features)
        self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the base weight of a merged layer, since the adapters are saved beside it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._check_savable(prefix)
        if self._merged:
            destination[prefix + "weight"] = self._kept
