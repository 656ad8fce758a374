"""An injected model that two processes train ends up where one process takes it."""

from __future__ import annotations

import pytest
import torch
from injected_group import injected, token_batch, train

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture(scope="module")
def alone():
    """State of one process after training on the whole batch, and that before it."""
    model = injected()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, token_batch())
    return model.state_dict(), before


@pytest.fixture(scope="module")
def ranks(run_workers):
    """What each rank saved, by kind of training and of gradient checkpointing."""
    return run_workers("injected.py")


def assert_same(ranks, training, kind, expected):
    for rank in ranks:
        state = rank[training][kind]
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, msg=lambda text, n=name: n + text)


def test_one_process_changes_what_trains_and_nothing_else(alone):
    state, before = alone
    model = injected()
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    # Adding to the key bias moves all scores of a query alike, which softmax does not see.
    unseen = {name for name in trained if name.endswith("k_proj.bias")}
    changed = {name for name, value in state.items() if not torch.equal(value, before[name])}
    assert trained - unseen <= changed <= trained


@pytest.mark.parametrize("kind", ["none", "reentrant", "not-reentrant"])
def test_data_parallel_training(ranks, alone, kind):
    assert_same(ranks, "data parallel", kind, alone[0])


@pytest.mark.parametrize("kind", ["none", "not-reentrant"])
def test_fully_sharded_training(ranks, alone, kind):
    assert_same(ranks, "sharded", kind, alone[0])
