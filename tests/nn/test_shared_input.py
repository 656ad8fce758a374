"""Layers that are computed together give what each gives by itself, forward and backward."""

from __future__ import annotations

import pytest
import torch
from nn_siblings import Siblings, apart, assert_same, gradients, together, tokens

import gralora


def squares(*outputs):
    return sum(output.square().sum() for output in outputs)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 1), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_outputs_are_those_of_each_layer_alone(shape, bias, group_sizes) -> None:
    siblings = together(bias=bias)
    x = tokens(*shape)
    torch.testing.assert_close(siblings(x), apart(siblings)(x))
    assert group_sizes == [3]


@pytest.mark.parametrize(
    "grid",
    [{"r": 4, "k": 1}, {"r": 8, "k": 4}, {"r": 4, "k": (4, 2)}, {"r": 4, "k": (2, 4)}],
    ids=["lora", "4x4", "4x2", "2x4"],
)
def test_gradients_are_those_of_each_layer_alone(grid, group_sizes) -> None:
    siblings = together(**grid)
    x = tokens(2, 3)
    assert_same(gradients(siblings, x, squares), gradients(apart(siblings), x, squares))
    assert group_sizes == [3]


def test_double_precision_agrees_to_the_last_digits(group_sizes) -> None:
    siblings = together(dtype=torch.float64)
    x = tokens(dtype=torch.float64)
    actual, expected = (
        gradients(each, x, lambda q, k, v: q.sin().sum() + (k * v).sum())
        for each in (siblings, apart(siblings))
    )
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-12, atol=1e-12)
    assert group_sizes == [3]


def test_float32_adapters_of_a_bfloat16_base(group_sizes) -> None:
    siblings = together(dtype=torch.bfloat16)
    x = tokens(dtype=torch.bfloat16)
    assert siblings.q.gralora_A["default"].dtype is torch.float32
    for actual, expected in zip(siblings(x), apart(siblings)(x), strict=True):
        assert actual.dtype is torch.bfloat16
        torch.testing.assert_close(actual, expected)
    assert group_sizes == [3]


def test_autocast_computes_in_its_dtype(group_sizes) -> None:
    siblings = together()
    x = tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = siblings(x), apart(siblings)(x)
    assert [output.dtype for output in actual] == [torch.bfloat16] * 3
    torch.testing.assert_close(actual, expected)
    assert group_sizes == [3]


@pytest.mark.parametrize("missing", ["q", "k", "v"])
def test_a_frozen_adapter_gets_no_gradient_and_the_others_theirs(missing, group_sizes) -> None:
    siblings = together()
    getattr(siblings, missing).gralora_A.requires_grad_(False)
    getattr(siblings, missing).gralora_B.requires_grad_(False)
    x = tokens()
    actual = gradients(siblings, x, squares)
    assert_same(actual, gradients(apart(siblings), x, squares))
    assert not any(name.startswith(missing) for name in actual)
    assert group_sizes == [3]


@pytest.mark.parametrize("unused", [0, 1, 2], ids=["q", "k", "v"])
def test_the_adapter_of_an_unused_output_gets_none(unused) -> None:
    def loss(*outputs):
        return squares(*(y for i, y in enumerate(outputs) if i != unused))

    siblings = together()
    x = tokens()
    actual = gradients(siblings, x, loss)
    assert_same(actual, gradients(apart(siblings), x, loss))
    assert actual[f"{'qkv'[unused]}.gralora_A.default"] is None


def test_gradients_accumulate_over_backward_passes() -> None:
    siblings = together()
    alone = apart(siblings)
    for seed in (1, 2):
        for each in (siblings, alone):
            squares(*each(tokens(seed=seed))).backward()
    for (name, actual), expected in zip(
        siblings.named_parameters(), alone.parameters(), strict=True
    ):
        if expected.grad is not None:
            torch.testing.assert_close(actual.grad, expected.grad, msg=name)


def test_an_output_may_be_changed_in_place() -> None:
    def loss(q, k, v):
        q.mul_(2)
        k.add_(1)
        return squares(q, k, v)

    siblings = together(dtype=torch.float64)
    x = tokens(dtype=torch.float64)
    assert_same(gradients(siblings, x, loss), gradients(apart(siblings), x, loss))


def test_backward_from_one_output_after_the_other_needs_the_graph_retained() -> None:
    siblings = together()
    q, k, _ = siblings(tokens())
    q.sum().backward(retain_graph=True)
    k.sum().backward()
    alone = apart(siblings)
    alone.zero_grad()
    q, k, _ = alone(tokens())
    (q.sum() + k.sum()).backward()
    for name in ("q", "k"):
        torch.testing.assert_close(
            getattr(siblings, name).gralora_A["default"].grad,
            getattr(alone, name).gralora_A["default"].grad,
        )


def test_first_and_later_calls_give_the_same_bits() -> None:
    siblings = together()
    x = tokens()
    first, second = siblings(x), siblings(x)
    assert all(map(torch.equal, first, second))


def test_pairs_are_computed_together_too(group_sizes) -> None:
    siblings = Siblings()
    assert gralora.share_inputs(siblings, groups=[("q", "v")]) == 1
    x = tokens()
    torch.testing.assert_close(siblings(x), apart(siblings)(x))
    assert group_sizes == [2]


def test_without_a_gradient_nothing_is_recorded(group_sizes) -> None:
    siblings = together()
    x = tokens()
    with torch.no_grad():
        outputs = siblings(x)
    assert not any(output.requires_grad for output in outputs)
    torch.testing.assert_close(outputs, tuple(y.detach() for y in apart(siblings)(x)))
    assert group_sizes == [3]
