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
    """What each rank saved, by kind of adapter and of gradient checkpointing."""
    return run_workers("accelerated_ddp.py")


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


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_data_parallel_training(ranks, kind, alone, checkpointing):
    _, expected = alone
    for rank in ranks:
        found = rank[kind, checkpointing]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, n=name: n + text)
