"""Counting what a forward pass keeps for its backward."""

import torch

from gralora.bench.memory import saved_bytes


def test_tensor_saved_twice_counts_once() -> None:
    x = torch.randn(10, dtype=torch.float32, requires_grad=True)
    assert saved_bytes(lambda: x * x, []) == 40


def test_parameter_does_not_count() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(8, 16, requires_grad=True)
    assert saved_bytes(lambda: x @ weight, [weight]) == 4 * 8 * 4


def test_view_counts_its_whole_storage() -> None:
    x = torch.randn(100, 10)
    weight = torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: x[:2] * weight, [weight]) == 100 * 10 * 4


def test_nothing_saved_is_zero() -> None:
    x = torch.randn(5, requires_grad=True)
    assert saved_bytes(lambda: x + 1, []) == 0
