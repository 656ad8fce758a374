"""One adapter of a PEFT layer as the operators take it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from gralora.functional import gralora_add, gralora_linear
from gralora.integrations.peft.access import child, parameter
from gralora.integrations.peft.obstacles import module_obstacle, tensor_obstacle


class Factors(NamedTuple):
    """Arguments of :func:`gralora.functional.gralora_linear` that an adapter gives.

    Attributes:
        A: ``[k, n, r]``, or None for plain LoRA.
        B: ``[k, r, m]``, or None for plain LoRA.
        plain_a: ``[r0, N]``, or None without a plain LoRA part.
        plain_b: ``[M, r0]``, or None without a plain LoRA part.
        scaling: factor of the whole adapter.
        dropout_p: probability of dropping an element of the adapter's input.
        training: whether dropout acts.

    """

    A: Tensor | None
    B: Tensor | None
    plain_a: Tensor | None
    plain_b: Tensor | None
    scaling: float
    dropout_p: float
    training: bool

    @property
    def first(self) -> Tensor:
        """One factor that is there."""
        factor = self.plain_a if self.A is None else self.A
        assert factor is not None
        return factor

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Base layer and adapter in one: ``[..., N]`` to ``[..., M]``."""
        return gralora_linear(
            x,
            weight,
            bias,
            self.A,
            self.B,
            scaling=self.scaling,
            lora_A=self.plain_a,
            lora_B=self.plain_b,
            dropout_p=self.dropout_p,
            training=self.training,
        )

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """The adapter's output for x ``[..., N]`` added to y ``[..., M]``, which is kept."""
        return gralora_add(
            y,
            x,
            self.A,
            self.B,
            scaling=self.scaling,
            lora_A=self.plain_a,
            lora_B=self.plain_b,
            dropout_p=self.dropout_p,
            training=self.training,
        )


def lora_factors(layer: Any, name: str) -> Factors | str:
    """Factors of an adapter of PEFT's LoRA layers, or why only PEFT can compute it."""
    if name in layer.lora_variant:
        return f"adapter {name} is a variant ({type(layer.lora_variant[name]).__name__})"
    dropout = _dropout(child(child(layer, "lora_dropout"), name))
    if isinstance(dropout, str):
        return f"adapter {name}: {dropout}"
    scaling = layer.scaling[name]
    if isinstance(scaling, Tensor):
        return f"adapter {name}: scaling is a tensor"
    pair = _linear_pair(layer, name, "lora_A", "lora_B")
    if isinstance(pair, str):
        return f"adapter {name}: {pair}"
    return Factors(None, None, pair[0], pair[1], scaling, dropout[0], dropout[1])


def gralora_factors(layer: Any, name: str) -> Factors | str:
    """Factors of an adapter of PEFT's GraLoRA layer, or why only PEFT can compute it."""
    dropout = _dropout(child(child(layer, "gralora_dropout"), name))
    if isinstance(dropout, str):
        return f"adapter {name}: {dropout}"
    scaling = layer.scaling[name]
    if isinstance(scaling, Tensor):
        return f"adapter {name}: scaling is a tensor"
    A = parameter(child(layer, "gralora_A"), name)
    B = parameter(child(layer, "gralora_B"), name)
    for factor, kind in ((A, "gralora_A"), (B, "gralora_B")):
        found = tensor_obstacle(factor)
        if found is not None:
            return f"adapter {name}: {kind} {found}"
    if not layer.hybrid_r[name]:
        return Factors(A, B, None, None, scaling, dropout[0], dropout[1])
    pair = _linear_pair(layer, name, "gralora_A_general", "gralora_B_general")
    if isinstance(pair, str):
        return f"adapter {name}: {pair}"
    return Factors(A, B, pair[0], pair[1], scaling, dropout[0], dropout[1])


def _dropout(module: Any) -> tuple[float, bool] | str:
    """Probability and whether it acts, or why the module must be called."""
    kind: Any = type(module)
    if kind is not nn.Identity and kind is not nn.Dropout:
        return f"dropout is a {kind.__name__}"
    found = module_obstacle(module)
    if found is not None:
        return f"dropout {found}"
    return (0.0, False) if kind is nn.Identity else (module.p, module.training)


def _linear_pair(layer: Any, name: str, A_name: str, B_name: str) -> tuple[Tensor, Tensor] | str:
    """Weights of an adapter's two linear layers, or why the layers must be called."""
    A = _linear_weight(child(child(layer, A_name), name), A_name)
    if isinstance(A, str):
        return A
    B = _linear_weight(child(child(layer, B_name), name), B_name)
    if isinstance(B, str):
        return B
    return A, B


def _linear_weight(module: Any, kind: str) -> Tensor | str:
    """Weight of a linear layer without bias, or why the layer must be called."""
    module_class: Any = type(module)
    if module_class is not nn.Linear:
        return f"{kind} is a {module_class.__name__}"
    if parameter(module, "bias") is not None:
        return f"{kind} has a bias"
    found = module_obstacle(module)
    if found is not None:
        return f"{kind} {found}"
    weight: Tensor = parameter(module, "weight")
    found = tensor_obstacle(weight)
    if found is not None:
        return f"{kind}.weight {found}"
    return weight
