"""PEFT's LoRA layers with the accelerated forward."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor

from gralora.integrations.peft.factors import Factors, lora_factors
from gralora.integrations.peft.forward import AcceleratedForward
from gralora.integrations.peft.quick import lora_arguments


class AcceleratedLora(AcceleratedForward):
    """What PEFT's linear LoRA layers have in common, whatever their base layer."""

    # PEFT's forward calls every module of the adapter, which a hook on all modules wants to see.
    way_with_global_hooks = "peft"
    quick = staticmethod(lora_arguments)

    def factors(self, name: str) -> Factors | str | None:
        """Operands of one adapter, why only PEFT can compute it, or None where it is not here."""
        return lora_factors(self, name)

    def check_mixed_batch(self, x: Tensor, adapter_names: list[str]) -> None:
        """Apply PEFT's rules for mixed batches.

        Raises:
            ValueError: as PEFT's layer.

        """
        layer: Any = self
        layer._check_forward_args(x, adapter_names=adapter_names)

    def mixed_batch_by_peft(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        adapter_names: list[str],
        reason: str,
    ) -> Tensor:
        """Hand the batch to PEFT's layer, which has an own way for every variant."""
        return self._by_peft(x, args, kwargs, adapter_names)


class Linear(AcceleratedLora, PeftLinear):
    """``peft.tuners.lora.layer.Linear``, under the same name."""
