"""No operator returns an input or a view of one."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops_calls import OPERATORS, as_list, call_of
from ops_cases import GRIDS, make_operands
from torch import Tensor

operators = pytest.mark.parametrize("operator", OPERATORS)
tokens = pytest.mark.parametrize("leading", [(), (1,), (5,), (0,), (2, 0)], ids=str)
grids = pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])


def _storage(tensor: Tensor) -> int:
    # The address of the storage object: at zero elements all data pointers are equal.
    return tensor.untyped_storage()._cdata


@tokens
@grids
@operators
@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0], ids=["no_dropout", "keeps_all", "drops_all"])
def test_outputs_share_no_storage_with_inputs(
    operator: str, grid: str, leading: tuple[int, ...], p: float, device: torch.device
) -> None:
    call = call_of(operator, make_operands(GRIDS[grid], leading, device=device), dropout_p=p)
    inputs = {_storage(value) for value in call.inputs()}
    assert not [output for output in call.outputs() if _storage(output) in inputs]


@tokens
@grids
@operators
def test_outputs_share_no_storage_with_each_other(
    operator: str, grid: str, leading: tuple[int, ...], device: torch.device
) -> None:
    call = call_of(operator, make_operands(GRIDS[grid], leading, device=device), dropout_p=0.3)
    outputs = call.outputs()
    for first, second in itertools.combinations(outputs, 2):
        assert _storage(first) != _storage(second)


def test_add_with_a_zero_scaling_is_a_copy(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device, scaling=0.0)
    result = operands.add()
    assert torch.equal(result, operands.y)
    assert _storage(result) != _storage(operands.y)


def test_the_gradient_of_y_is_its_own_tensor(device: torch.device) -> None:
    leaves = make_operands(GRIDS["hybrid"], device=device).requiring_grad(["y", "x"])
    leaves.add().backward(leaves.dy)
    before = leaves.dy.clone()
    assert leaves.y.grad is not None
    leaves.y.grad.zero_()
    assert torch.equal(leaves.dy, before)


@pytest.mark.parametrize("grid", ["wide", "plain_pair_alone"])
def test_gradients_of_two_backwards_do_not_share_storage(grid: str, device: torch.device) -> None:
    call = call_of("linear_backward", make_operands(GRIDS[grid], device=device))
    first, second = as_list(call()), as_list(call())
    assert not {_storage(t) for t in first} & {_storage(t) for t in second}
