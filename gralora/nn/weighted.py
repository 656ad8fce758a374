"""Layers that own the matrix they adapt, so that one operator computes base and adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn import sharing
from gralora.nn.merging import MergeableLayer


class WeightedLayer(MergeableLayer):
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
        sharing.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled layer."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        sharing.register(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen layer and the active adapters that are not merged into its weight.

        Args:
            x: ``[..., N]`` in the weight's dtype (any floating dtype under autocast).

        Returns:
            ``[..., M]`` in x's dtype, or autocast's.

        """
        live = self._live_adapters()
        weight, bias = self._base()
        weight = self._matrix(weight)
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

    def extra_repr(self) -> str:
        """Sizes, and what is attached, active and merged."""
        sizes = (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
        return "\n".join((sizes, *self._adapter_lines()))

    def _matrix(self, weight: Tensor) -> Tensor:
        """``W [M, N]`` as a view of the weight, which merging writes through."""
        return weight

    def _base(self) -> tuple[Tensor, Tensor | None]:
        # As in _factor: around nn.Module's slow search for parameters.
        parameters: Any = self._parameters
        if "weight" in parameters and "bias" in parameters:
            return parameters["weight"], parameters["bias"]
        return self.weight, self.bias

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        return self.weight.device, self.weight.dtype

    @torch.no_grad()
    def _reset_base(self) -> None:
        bound = 1 / math.sqrt(self.in_features)
        self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def _check_base(self) -> None:
        if self.weight.is_meta:
            raise RuntimeError(
                f"{self._who}.merge: the weight is on the meta device and has no values"
            )
        if type(self.weight) not in (nn.Parameter, Tensor):
            raise RuntimeError(
                f"{self._who}.merge: the weight must be an ordinary tensor, got a "
                f"{type(self.weight).__name__}; merge before it is sharded or wrapped"
            )

    def _check_unshared(self) -> None:
        if next(sharing.layers_sharing_weight(self), None) is not None:
            raise RuntimeError(
                f"{self._who}.merge: the weight is shared with another GraLoRA layer, which would "
                "change too; give each layer a weight of its own before merging"
            )

    def _try_merge(self, names: tuple[str, ...]) -> None:
        trial = self.weight.clone()
        for name in names:
            self._add_to(self._matrix(trial), name)
            if not torch.isfinite(trial).all():
                raise ValueError(
                    f"{self._who}.merge: merging adapter {name!r} would put Inf or NaN into the "
                    "weight; nothing was changed (safe_merge=True)"
                )

    def _merge_into_base(self, names: Sequence[str]) -> float | None:
        for name in names:
            self._add_to(self._matrix(self.weight), name)
            self._merged += (name,)
        return None

    def _keep_base(self, where: Literal["device", "cpu"]) -> None:
        device = self.weight.device if where == "device" else torch.device("cpu")
        if self._kept is not None:
            self._kept = self._kept.to(device)
        else:
            self._kept = self.weight.detach().to(device, copy=True)

    def _restore_base(self) -> None:
        self.weight.copy_(self._kept)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the base weight of a merged layer, since the adapters are saved beside it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._check_savable(prefix)
        if self._merged:
            destination[prefix + "weight"] = self._kept
