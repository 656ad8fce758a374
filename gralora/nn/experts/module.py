"""GraLoRAExperts: a frozen module with fused experts, and adapters of its parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from gralora.nn.experts.forward import grouped_forward
from gralora.nn.experts.layout import fused_parameters, projections
from gralora.nn.experts.weights import ExpertWeights

_WHO = "GraLoRAExperts"


class GraLoRAExperts(nn.Module):
    """Stands in for a module with fused experts, whose parameters get adapters.

    It starts without an adapter; each of its :class:`gralora.nn.ExpertWeights`, which have the
    names of the parameters (``experts.gate_up_proj``), can get some.

    The experts modules of transformers compute their two products, and the adapters theirs, in one
    grouped pass over all experts; gate, activation and routing weights are as in the module itself.
    Any other module runs itself with weights that the adapters were added to, which takes the time
    and memory of one more weight, as in PEFT; dropout of the adapters' input is not possible there.
    Without an adapter that acts, every module runs itself.

    Args:
        base_layer: a module with floating parameters of three dimensions, one matrix for each
            expert; its parameters become frozen.

    Attributes:
        base_layer: the frozen module. Its own keys in a state dict (``experts.gate_up_proj``) are
            accepted on loading.

    Raises:
        TypeError: `base_layer` has no such parameter.

    """

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        names = tuple(fused_parameters(base_layer))
        if not names:
            raise TypeError(
                f"{_WHO}: needs a module with a floating parameter of three dimensions, got a "
                f"{type(base_layer).__name__}"
            )
        self.base_layer = base_layer.requires_grad_(False)
        for name in names:
            setattr(self, name, ExpertWeights(base_layer, name))
        self.parameter_names = names
        self.train(base_layer.training)

    @property
    def weights(self) -> dict[str, ExpertWeights]:
        """The adapters of each fused parameter, by its name."""
        return {name: self._weights_of(name) for name in self.parameter_names}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the experts with the active adapters that are not merged.

        Raises:
            RuntimeError: an adapter with dropout, while training, of a module that runs itself.

        """
        acting = [name for name, weights in self.weights.items() if weights._live_adapters()]
        if not acting:
            return self.base_layer(*args, **kwargs)
        names = projections(self.base_layer)
        if names is not None and set(acting) <= set(names):
            return grouped_forward(self.base_layer, names, self._add, *args, **kwargs)
        self._check_no_dropout(acting)
        changed = {name: self._weights_of(name).added_to_weight() for name in acting}
        return functional_call(self.base_layer, changed, args, kwargs)

    def _weights_of(self, name: str) -> ExpertWeights:
        weights = self._modules[name]
        assert isinstance(weights, ExpertWeights)
        return weights

    def _add(self, name: str, y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
        return self._weights_of(name).add_to_rows(y, x, ends)

    def _check_no_dropout(self, acting: list[str]) -> None:
        if not self.training:
            return
        for name in acting:
            weights = self._weights_of(name)
            for adapter in weights._live_adapters():
                if weights.adapters[adapter].dropout:
                    raise RuntimeError(
                        f"{_WHO}: dropout must be 0 for experts that run themselves, got "
                        f"{weights.adapters[adapter].dropout} of {adapter!r} with a "
                        f"{type(self.base_layer).__name__} (accepted: the experts modules of "
                        "transformers)"
                    )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Owners of experts read their sizes; before __init__ there is nothing to ask.
            base = self.__dict__.get("_modules", {}).get("base_layer")
            if base is None:
                raise
        return getattr(base, name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, weights in self.weights.items():
            if weights.merged:
                raise RuntimeError(
                    f"{_WHO}.load_state_dict: {weights.merged_adapters} are merged into "
                    f"{prefix}{name}; {weights._way_out()}"
                )
        for name in self.base_layer.state_dict():
            given, wanted = prefix + name, f"{prefix}base_layer.{name}"
            if given in state_dict and wanted not in state_dict:
                state_dict[wanted] = state_dict.pop(given)
        super()._load_from_state_dict(state_dict, prefix, *args)
