"""One complete call of every operator on the same operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ops_cases import Operands
from torch import Tensor

OPERATORS = (
    "linear",
    "linear_forward",
    "linear_backward",
    "add",
    "add_forward",
    "add_backward",
    "delta_weight",
    "dropout",
)


@dataclass(frozen=True)
class Call:
    """An operator of `torch.ops.gralora` with its arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def overload(self) -> Any:
        return getattr(torch.ops.gralora, self.name).default

    def __call__(self) -> Any:
        return self.overload(*self.args, **self.kwargs)

    def outputs(self) -> list[Tensor]:
        """What the operator returns, as a list of its tensors."""
        return as_list(self())

    def inputs(self) -> list[Tensor]:
        return [value for value in self.args if isinstance(value, Tensor)]


def as_list(result: Tensor | Sequence[Tensor | None] | None) -> list[Tensor]:
    """The tensors of an operator's result."""
    if result is None:
        return []
    if isinstance(result, Tensor):
        return [result]
    return [value for value in result if value is not None]


def call_of(name: str, operands: Operands, dropout_p: float = 0.0, mask: str = "all") -> Call:
    """The call of operator `name`; `mask` is "all" or "factors", what a backward is asked for."""
    factors = operands.factors()
    rng_state = torch.tensor([12345, -678], device=operands.x.device) if dropout_p else None
    numbers: dict[str, Any] = {"scaling": operands.scaling}
    if name == "delta_weight":
        return Call(name, factors, numbers)
    if name == "merge_":
        return Call(name, (operands.weight, *factors), {**numbers, "sign": -1.0})
    if name == "dropout":
        state = torch.tensor([12345, -678], device=operands.x.device)
        return Call(name, (operands.x, state), {"p": dropout_p})
    numbers["dropout_p"] = dropout_p
    linear = name.startswith("linear")
    inputs = (operands.x, operands.weight, operands.bias) if linear else (operands.y, operands.x)
    if name in ("linear", "add"):
        return Call(name, (*inputs, *factors), {**numbers, "training": True})
    forward = Call(
        "linear_forward" if linear else "add_forward", (*inputs, *factors, rng_state), numbers
    )
    if name == forward.name:
        return forward
    _, H, lora_H = (value.detach() for value in forward())
    inputs = (operands.dy, operands.x, operands.weight) if linear else (operands.dy, operands.x)
    present = [factor is not None for factor in factors]
    bases = [mask == "all"] * (3 if linear else 1)
    numbers["output_mask"] = [*bases, *present]
    return Call(name, (*inputs, *factors, H, lora_H, rng_state), numbers)
