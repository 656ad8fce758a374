"""PEFT's GraLoRA layer with the accelerated forward."""

from __future__ import annotations

from typing import Any

from peft.tuners.gralora.layer import Linear as PeftLinear
from torch import Tensor

from gralora.integrations.peft.factors import Factors, gralora_factors
from gralora.integrations.peft.forward import AcceleratedForward
from gralora.integrations.peft.quick import gralora_arguments
from gralora.integrations.peft.requantising import RequantisingMerge


# nn.Linear, a base of PEFT's class, calls its argument `input`; PEFT's own forward says x, too.
class Linear(AcceleratedForward, RequantisingMerge, PeftLinear):  # type: ignore[misc]
    """``peft.tuners.gralora.layer.Linear``, under the same name."""

    # PEFT's forward adds in place, which a backward hook on the base layer does not allow.
    way_with_global_hooks = "beside"
    quick = staticmethod(gralora_arguments)

    def factors(self, name: str) -> Factors | str | None:
        """Operands of one adapter, why only PEFT can compute it, or None where it is not here."""
        return gralora_factors(self, name)

    def _by_peft(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        adapter_names: list[str] | None,
    ) -> Tensor:
        # PEFT's forward takes two or three dimensions, none of them empty.
        if not x.numel():
            return self._beside(x, args, kwargs, ())
        if x.ndim in (2, 3) or args or kwargs or adapter_names is not None:
            return super()._by_peft(x, args, kwargs, adapter_names)
        y = super()._by_peft(x.reshape(-1, x.shape[-1]), args, kwargs, None)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def check_mixed_batch(self, x: Tensor, adapter_names: list[str]) -> None:
        """Apply the rules that PEFT has for mixed batches of LoRA.

        Raises:
            ValueError: not one name for each row, or an adapter is merged into the weight.

        """
        if len(x) != len(adapter_names):
            raise ValueError(
                "adapter_names: needs one name for each row of the batch, got "
                f"{len(adapter_names)} names and {len(x)} rows"
            )
        if self.merged:
            raise ValueError(
                "adapter_names: needs a base weight without adapters, got one into which "
                f"{self.merged_adapters} are merged (unmerge them first)"
            )

    def mixed_batch_by_peft(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        adapter_names: list[str],
        reason: str,
    ) -> Tensor:
        """Refuse: PEFT's GraLoRA layer has no mixed batches.

        Raises:
            NotImplementedError: always.

        """
        raise NotImplementedError(
            f"adapter_names: PEFT's GraLoRA layer has no mixed batches, and gralora's operators "
            f"cannot take this one: {reason}"
        )
