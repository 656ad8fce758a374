"""One adapter of a PEFT layer as the operators take it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gralora.functional import gralora_add, gralora_linear
from gralora.integrations.peft.access import parameter
from gralora.integrations.peft.obstacles import module_obstacle, tensor_obstacle

# Arguments of gralora.functional.gralora_linear that an adapter gives, a plain tuple since every
# forward pass builds one:
# A: [k, n, r], or None for plain LoRA.
# B: [k, r, m], or None for plain LoRA.
# plain_a: [r0, N], or None without a plain LoRA part.
# plain_b: [M, r0], or None without a plain LoRA part.
# scaling: factor of the whole adapter.
# dropout_p: probability of dropping an element of the adapter's input.
# training: whether dropout acts.
Factors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float, float, bool]

_NO_DROPOUT = (0.0, False)


def first(factors: Factors) -> Tensor:
    """One factor that is there."""
    factor = factors[2] if factors[0] is None else factors[0]
    assert factor is not None
    return factor


def linear(factors: Factors, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Base layer and adapter in one: ``[..., N]`` to ``[..., M]``."""
    A, B, plain_a, plain_b, scaling, dropout_p, training = factors
    return gralora_linear(
        x,
        weight,
        bias,
        A,
        B,
        scaling=scaling,
        lora_A=plain_a,
        lora_B=plain_b,
        dropout_p=dropout_p,
        training=training,
    )


def add(factors: Factors, y: Tensor, x: Tensor) -> Tensor:
    """The adapter's output for x ``[..., N]`` added to y ``[..., M]``, which is kept."""
    A, B, plain_a, plain_b, scaling, dropout_p, training = factors
    return gralora_add(
        y,
        x,
        A,
        B,
        scaling=scaling,
        lora_A=plain_a,
        lora_B=plain_b,
        dropout_p=dropout_p,
        training=training,
    )


def lora_factors(layer: Any, name: str) -> Factors | str | None:
    """Factors of an adapter of PEFT's LoRA layers, or why only PEFT can compute it.

    None where the layer has no adapter of that name.
    """
    modules = layer._modules
    if name not in modules["lora_A"]._modules:
        return None
    if name in layer.lora_variant:
        return f"adapter {name} is a variant ({type(layer.lora_variant[name]).__name__})"
    dropout = _dropout(modules["lora_dropout"]._modules[name])
    if isinstance(dropout, str):
        return f"adapter {name}: {dropout}"
    scaling = layer.scaling[name]
    if isinstance(scaling, Tensor):
        return f"adapter {name}: scaling is a tensor"
    plain_a = _linear_weight(modules["lora_A"]._modules[name], "lora_A")
    if isinstance(plain_a, str):
        return f"adapter {name}: {plain_a}"
    plain_b = _linear_weight(modules["lora_B"]._modules[name], "lora_B")
    if isinstance(plain_b, str):
        return f"adapter {name}: {plain_b}"
    return None, None, plain_a, plain_b, scaling, *dropout


def gralora_factors(layer: Any, name: str) -> Factors | str | None:
    """Factors of an adapter of PEFT's GraLoRA layer, or why only PEFT can compute it.

    None where the layer has no adapter of that name.
    """
    modules = layer._modules
    A = modules["gralora_A"]._parameters.get(name)
    if A is None:
        if name not in modules["gralora_A"]:
            return None
        A = getattr(modules["gralora_A"], name)
    dropout = _dropout(modules["gralora_dropout"]._modules[name])
    if isinstance(dropout, str):
        return f"adapter {name}: {dropout}"
    scaling = layer.scaling[name]
    if isinstance(scaling, Tensor):
        return f"adapter {name}: scaling is a tensor"
    B = parameter(modules["gralora_B"], name)
    found = tensor_obstacle(A)
    if found is not None:
        return f"adapter {name}: gralora_A {found}"
    found = tensor_obstacle(B)
    if found is not None:
        return f"adapter {name}: gralora_B {found}"
    if not layer.hybrid_r[name]:
        return A, B, None, None, scaling, *dropout
    plain_a = _linear_weight(modules["gralora_A_general"]._modules[name], "gralora_A_general")
    if isinstance(plain_a, str):
        return f"adapter {name}: {plain_a}"
    plain_b = _linear_weight(modules["gralora_B_general"]._modules[name], "gralora_B_general")
    if isinstance(plain_b, str):
        return f"adapter {name}: {plain_b}"
    return A, B, plain_a, plain_b, scaling, *dropout


def _dropout(module: Any) -> tuple[float, bool] | str:
    """Probability and whether it acts, or why the module must be called."""
    kind: Any = type(module)
    if kind is not nn.Identity and kind is not nn.Dropout:
        return f"dropout is a {kind.__name__}"
    found = module_obstacle(module)
    if found is not None:
        return f"dropout {found}"
    return _NO_DROPOUT if kind is nn.Identity else (module.p, module.training)


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
