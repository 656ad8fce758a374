"""Two processes that train together end up where one process does."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from training_group import batch, loss_of, model

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture
def alone():
    """Gradients and updated parameters of one process on the whole batch."""
    network = model()
    loss_of(network, *batch()).backward()
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = {name: p.grad.clone() for name, p in trainable.items()}
    torch.optim.SGD(trainable.values(), lr=0.1).step()
    return gradients, {name: p.detach() for name, p in network.named_parameters()}


@pytest.fixture(scope="module")
def sharded(run_workers):
    """What each rank of the fully sharded run saved, by task."""
    return run_workers("fsdp.py")


def test_data_parallel_gradients_are_those_of_one_process(run_workers, alone):
    gradients, _ = alone
    for rank in run_workers("ddp.py"):
        assert rank.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(rank[name], gradient)


def test_fully_sharded_step_is_that_of_one_process(sharded, alone):
    gradients, parameters = alone
    expected = {f"grad.{name}": value for name, value in gradients.items()}
    expected |= {f"new.{name}": value for name, value in parameters.items()}
    for rank in (saved["train"] for saved in sharded):
        assert rank.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(rank[name], value)


def test_fully_sharded_mixed_precision_is_close_to_one_process(sharded, alone):
    gradients, _ = alone
    for rank in (saved["mixed"] for saved in sharded):
        for name, gradient in gradients.items():
            assert rank[f"grad.{name}"].dtype == torch.float32
            error = (rank[f"grad.{name}"] - gradient).norm() / gradient.norm()
            assert error.item() < 0.05, name


def test_fully_sharded_initialisation_from_the_meta_device(sharded):
    first, second = (saved["meta"] for saved in sharded)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.isfinite().all(), name
    for index, k_in in (("0", 2), ("2", 4)):
        A = first[f"{index}.gralora_A.default"]
        assert A.shape[0] == k_in
        assert 0 < A.abs().max().item() <= 1 / math.sqrt(A.shape[1])
        assert not first[f"{index}.gralora_B.default"].any()
    hidden = torch.tanh(F.linear(batch()[0], first["0.weight"], first["0.bias"]))
    torch.testing.assert_close(first["output"], F.linear(hidden, first["2.weight"]))
