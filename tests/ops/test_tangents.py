"""Forward-mode differentiation of linear and add is refused, never lost."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad


def _operands() -> dict[str, torch.Tensor]:
    shapes = {"x": (5, 8), "A": (2, 4, 6), "B": (3, 4, 4), "y": (5, 12), "weight": (12, 8)}
    return {name: torch.randn(*shape) for name, shape in shapes.items()}


def _run(operator: str, o: dict[str, torch.Tensor]) -> torch.Tensor:
    factors = (o["A"], o["B"], None, None)
    if operator == "linear":
        return torch.ops.gralora.linear(o["x"], o["weight"], None, *factors, scaling=0.5)
    return torch.ops.gralora.add(o["y"], o["x"], *factors, scaling=0.5)


@pytest.mark.parametrize("operator", ["linear", "add"])
@pytest.mark.parametrize("name", ["x", "A", "B"])
def test_a_tangent_of_an_operand_is_refused(operator: str, name: str) -> None:
    o = _operands()
    with forward_ad.dual_level():
        o[name] = forward_ad.make_dual(o[name], torch.randn_like(o[name]))
        with pytest.raises(NotImplementedError, match=rf"gralora::{operator}: forward-mode"):
            _run(operator, o)


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_a_tangent_of_the_output_gradient_is_refused(operator: str) -> None:
    o = _operands()
    o["A"].requires_grad_()
    y = _run(operator, o)
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(torch.randn_like(y), torch.randn_like(y))
        with pytest.raises(NotImplementedError, match=rf"gralora::{operator}: forward-mode"):
            torch.autograd.grad(y, o["A"], dy)


def test_merging_a_factor_that_lies_in_the_weight_is_refused() -> None:
    memory = torch.randn(12, 8)
    with pytest.raises(RuntimeError, match="memory"):
        torch.ops.gralora.merge_(
            memory, memory[:4].view(2, 4, 4)[..., :4], torch.randn(2, 4, 6), None, None, scaling=1.0
        )


def test_merging_into_an_inference_tensor_is_refused_before_it_is_written() -> None:
    o = _operands()
    with torch.inference_mode():
        weight = torch.zeros(12, 8)
    with pytest.raises(RuntimeError, match="gralora::merge_: weight is an inference tensor"):
        torch.ops.gralora.merge_(weight, o["A"], o["B"], None, None, scaling=1.0)
    assert not weight.any()
