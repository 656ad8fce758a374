"""Accelerated PEFT models that two processes train end up where PEFT alone takes them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("peft.tuners.gralora.layer", reason="PEFT with GraLoRA is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from accelerated_group import CHECKPOINTING, CONFIGS, adapters, peft_model
from injected_group import token_batch, train

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture(scope="module")
def ranks(run_workers):
    """What each rank saved, by kind of training and of adapter."""
    return run_workers("accelerated.py")


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request):
    """LoRA and GraLoRA in turn."""
    return request.param


@pytest.fixture(scope="module")
def alone(kind):
    """The adapters before and after PEFT's own model was trained on the whole batch."""
    model = peft_model(kind)
    before = {name: value.clone() for name, value in adapters(model).items()}
    train(model, token_batch())
    return before, adapters(model)


def test_one_process_changes_every_adapter(alone):
    before, after = alone
    assert before
    assert not any(torch.equal(value, before[name]) for name, value in after.items())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_data_parallel_training(ranks, kind, alone, checkpointing):
    for rank in ranks:
        assert_same(rank["data parallel"][kind, checkpointing], alone[1])


def test_fully_sharded_training(ranks, kind, alone):
    for rank in ranks:
        assert_same(rank["sharded"][kind]["adapters"], alone[1])


def test_sharded_layers_are_fused_within_a_pass_and_not_said_to_be_after_it(ranks, kind):
    for rank in ranks:
        assert rank["sharded"][kind]["within"] == {"fused": 2}
        assert rank["sharded"][kind]["after"] == {"peft": 2}
