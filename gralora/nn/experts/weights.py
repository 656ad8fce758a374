"""ExpertWeights: the adapters of one fused parameter, one adapter for each expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn.experts.delta import grouped_delta
from gralora.nn.experts.layout import features, fused_parameters, is_transposed
from gralora.nn.experts.stacking import as_one_grid
from gralora.nn.initialisation import initialise
from gralora.nn.inplace import InPlaceLayer
from gralora.nn.spec import AdapterSpec
from gralora.nn.starts import is_pissa

_WHO = "ExpertWeights"


class ExpertWeights(InPlaceLayer):
    """Adapters of a frozen parameter that holds a matrix for each expert.

    It computes nothing by itself: :class:`gralora.nn.GraLoRAExperts`, which holds it under the
    parameter's name, does. The methods are those of :class:`gralora.nn.GraLoRALinear`; an adapter's
    settings hold for every expert, and each expert has factors of its own.

    ====== ================================
    factor shape
    ====== ================================
    A      ``[E, k_in, n, k_out*s]``
    B      ``[E, k_out, k_in*s, m]``
    lora_A ``[E, r0, N]`` of a hybrid
    lora_B ``[E, M, r0]`` of a hybrid
    ====== ================================

    Args:
        experts: the module that owns the parameter.
        parameter_name: of ``[E, M, N]``, or of ``[E, N, M]`` where `experts` has
            ``is_transposed``, as PEFT reads fused parameters too.

    Raises:
        ValueError: `experts` has no floating parameter of that name with three dimensions.

    """

    _who = _WHO

    def __init__(self, experts: nn.Module, parameter_name: str) -> None:
        fused = fused_parameters(experts)
        if parameter_name not in fused:
            accepted = ", ".join(fused) or "none"
            raise ValueError(
                f"{_WHO}: parameter_name must be that of a floating parameter with three "
                f"dimensions, got {parameter_name!r} (of {type(experts).__name__}: {accepted})"
            )
        super().__init__(*features(experts, fused[parameter_name]))
        self.parameter_name = parameter_name
        self.num_experts = fused[parameter_name].shape[0]
        # In a tuple, since a module that is an attribute would be one of this module's own.
        self._experts = (experts,)
        self._announce()

    @property
    def weight(self) -> Any:
        """The frozen parameter, of the module that owns it."""
        return getattr(self._experts[0], self.parameter_name)

    @property
    def is_transposed(self) -> bool:
        """Whether the parameter is ``[E, N, M]``."""
        return is_transposed(self._experts[0])

    def check_start(self, spec: AdapterSpec, *, who: str) -> None:
        """Raise TypeError where an adapter has to start as a part of the weight."""
        if is_pissa(spec.init_weights):
            raise TypeError(
                f"{who}: init_weights={spec.init_weights!r} takes a part out of the weight, which "
                "must be that of an nn.Linear or Conv1D, got the fused parameter "
                f'{self.parameter_name} (accepted here: "kaiming", "gaussian" and "orthogonal")'
            )

    def plain(self) -> nn.Module:
        """The module that owns the parameter."""
        return self._experts[0]

    def delta_weight(self, name: str = "default") -> Tensor:
        """Weight differences of all experts, in the layout of the parameter.

        Returns:
            ``[E, M, N]``, or ``[E, N, M]``, in the adapter's dtype. Differentiable.

        Raises:
            ValueError: an unknown name.

        """
        self._check_known(name, "delta_weight")
        A, B = self._one_grid(name)
        delta = functional.delta_weight(A, B, scaling=self.adapters[name].scaling)
        return delta.reshape(self.num_experts, -1, delta.shape[1])

    def add_to_rows(self, y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
        """Add the active adapters that are not merged, out of place.

        Under autocast what float32 experts get is computed in autocast's dtype: factors are small
        enough to be cast.

        Args:
            y: ``[S, M]``, each expert's outputs for its rows.
            x: ``[S, N]`` in y's dtype, the rows, sorted by expert.
            ends: ``[E]`` int32, where each expert's rows end.

        """
        x = x.to(_adapter_dtype(x))
        for name in self._live_adapters():
            spec = self.adapters[name]
            A, B, lora_A, lora_B = self._factors(name)
            rows = nn.functional.dropout(x, spec.dropout, self.training) if spec.dropout else x
            y = y + grouped_delta(rows, A, B, ends, scaling=spec.scaling).to(y.dtype)
            if lora_A is not None and lora_B is not None:
                # The plain part is a grid of one block.
                pair = lora_A.transpose(1, 2).unsqueeze(1), lora_B.transpose(1, 2).unsqueeze(1)
                y = y + grouped_delta(rows, *pair, ends, scaling=spec.scaling).to(y.dtype)
        return y

    def added_to_weight(self) -> Tensor:
        """The parameter with the active adapters that are not merged; a new tensor of its size."""
        weight: Tensor = self.weight
        for name in self._live_adapters():
            weight = weight + self.delta_weight(name).to(weight.dtype)
        return weight

    def extra_repr(self) -> str:
        """Sizes, and what is attached, active and merged."""
        sizes = (
            f"num_experts={self.num_experts}, in_features={self.in_features}, "
            f"out_features={self.out_features}"
        )
        return "\n".join((sizes, *self._adapter_lines()))

    def _create_adapter(
        self, name: str, spec: AdapterSpec, adapter_dtype: torch.dtype | None
    ) -> None:
        super()._create_adapter(name, spec, adapter_dtype)
        for factors in self._all_factors():
            if name in factors:
                one = factors[name].data
                shape = (self.num_experts, *one.shape)
                factors[name] = nn.Parameter(one.new_empty(shape), requires_grad=False)

    def _start(self, name: str, generator: torch.Generator | None) -> None:
        for expert in range(self.num_experts):
            A, B, lora_A, lora_B = (
                None if factor is None else factor[expert] for factor in self._factors(name)
            )
            assert A is not None
            assert B is not None
            initialise(self.adapters[name], A, B, lora_A, lora_B, generator)

    def _reset_base(self) -> None:
        """Do nothing: the module that owns the parameter has a method of its own for that."""

    def _one_grid(self, name: str) -> tuple[Tensor, Tensor]:
        return as_one_grid(*self._factors(name), transposed=self.is_transposed)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.view(-1, weight.shape[2])

    def _add_to(self, weight: Tensor, name: str) -> None:
        A, B = self._one_grid(name)
        torch.ops.gralora.merge_(weight, A, B, None, None, scaling=self.adapters[name].scaling)

    def _check_base(self) -> None:
        super()._check_base()
        if not self.weight.is_contiguous():
            raise RuntimeError(
                f"{_WHO}.merge: {self.parameter_name} must be contiguous, got strides "
                f"{list(self.weight.stride())} of {list(self.weight.shape)}"
            )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the base of merged experts, since the adapters are saved beside it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._check_savable(prefix)
        if self._merged:
            outer = prefix.removesuffix(f"{self.parameter_name}.")
            destination[f"{outer}base_layer.{self.parameter_name}"] = self._kept


def _adapter_dtype(x: Tensor) -> torch.dtype:
    """What adapters of rows in x's dtype compute in: autocast casts float32 alone."""
    kind = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype
