"""The forward that takes the place of PEFT's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from gralora import _C
from gralora.integrations.peft.factors import Factors, add, linear
from gralora.integrations.peft.mixed_batch import add_by_row
from gralora.integrations.peft.obstacles import input_obstacle
from gralora.integrations.peft.plan import Way, plan
from gralora.integrations.peft.quick import Arguments

# PEFT's marks of options that only variants of LoRA read.
_VARIANT_OPTIONS = ("alora_offsets",)

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class AcceleratedForward(_Base):
    """Mixed in before one of PEFT's layers; adds no state.

    A layer gets it by an assignment to its ``__class__``, so that no constructor runs.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the base layer and the adapters.

        Args:
            x: ``[..., N]``, any leading sizes.
            *args: for the base layer.
            **kwargs: PEFT's ``adapter_names``, a name for each row of x; else for the base layer.

        Returns:
            ``[..., M]`` in the dtype of the base layer's output.

        """
        if kwargs:
            adapter_names = kwargs.pop("adapter_names", None)
            for option in _VARIANT_OPTIONS:
                if kwargs.get(option) is not None:
                    return self._by_peft(x, args, kwargs, adapter_names)
                kwargs.pop(option, None)
            if adapter_names is not None:
                return self._mixed(x, args, kwargs, adapter_names)
        elif not args and not is_compiling():
            arguments = self.quick(self, x)
            if arguments is not None:
                return _C.linear(*arguments)
        way, _, factors, base = plan(self)
        if way == "peft" or (way != "base" and input_obstacle(x)):
            return self._by_peft(x, args, kwargs, None)
        if base is not None and not args and not kwargs:
            weight, bias = base
            if weight.dtype is x.dtype or torch.is_autocast_enabled(x.device.type):
                y = linear(factors[0], x, weight, bias)
                for further in factors[1:]:
                    y = add(further, y, x)
                return y
        return self._beside(x, args, kwargs, factors)

    way_with_global_hooks: ClassVar[Way]

    @staticmethod
    def quick(layer: Any, x: Tensor) -> Arguments | None:
        """Arguments of the fused operator in the commonest state, or None to ask `plan`."""
        raise NotImplementedError

    def factors(self, name: str) -> Factors | str | None:
        """Operands of one adapter, why only PEFT can compute it, or None where it is not here."""
        raise NotImplementedError

    def _beside(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        factors: tuple[Factors, ...],
    ) -> Tensor:
        layer: Any = self
        if layer.disable_adapters and layer.merged:
            layer.unmerge()
        y: Tensor = layer.base_layer(x, *args, **kwargs)
        for each in factors:
            y = add(each, y, x)
        return y

    def _by_peft(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        adapter_names: list[str] | None,
    ) -> Tensor:
        if adapter_names is not None:
            kwargs["adapter_names"] = adapter_names
        result: Tensor = super().forward(x, *args, **kwargs)
        return result

    def _mixed(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        adapter_names: list[str],
    ) -> Tensor:
        layer: Any = self
        self.check_mixed_batch(x, adapter_names)
        if layer.disable_adapters:
            return self._beside(x, args, kwargs, ())
        factors: dict[str, Factors] = {}
        for name in dict.fromkeys(adapter_names):
            found = None if name == "__base__" else self.factors(name)
            if isinstance(found, str):
                return self.mixed_batch_by_peft(x, args, kwargs, adapter_names, found)
            if found is not None:
                factors[name] = found
        if input_obstacle(x):
            return self.mixed_batch_by_peft(
                x, args, kwargs, adapter_names, f"the input is a {type(x).__name__} of {x.dtype}"
            )
        return add_by_row(layer.base_layer(x, *args, **kwargs), x, adapter_names, factors)

    def check_mixed_batch(self, x: Tensor, adapter_names: list[str]) -> None:
        """Refuse names that do not belong to the rows of x, or a state that allows no mixture."""
        raise NotImplementedError

    def mixed_batch_by_peft(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        adapter_names: list[str],
        reason: str,
    ) -> Tensor:
        """Compute a mixed batch that the operators cannot, for the reason given."""
        raise NotImplementedError
