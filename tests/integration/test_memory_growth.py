"""A thousand training steps need no more GPU memory than the first few."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear

STEPS = 1000
WARM_UP = 30
# Steps of one length, and of lengths that come round again as batches of real text do.
LENGTHS = {"one_length": [96], "changing_lengths": [1, 33, 512, 7, 129, 640]}
PATHS = [None, "aten", "sm80", "sm90"]


def _model(device, dropout):
    options = {"r": 16, "k": 2, "hybrid_r": 8, "dropout": dropout, "device": device}
    return nn.Sequential(
        GraLoRALinear(576, 192, dtype=torch.bfloat16, **options),
        nn.GELU(),
        GraLoRALinear(192, 576, dtype=torch.bfloat16, **options),
    )


def _in_use():
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def _assert_no_more_than(before):
    # Autograd's thread may let go of a step's last tensors a moment after the step has ended, so
    # the first measurement may be too high.
    allocated, reserved = _in_use()
    assert allocated <= before[0]
    assert reserved <= before[1]


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["whole", "dropped"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("path", PATHS, ids=["chosen", "aten", "sm80", "sm90"])
def test_training_steps(cuda, randomise, forced, path, lengths, dropout):
    model = randomise(_model(cuda, dropout))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    inputs = [torch.randn(length, 576, device=cuda, dtype=torch.bfloat16) for length in lengths]
    before = None
    with forced(path):
        for step in range(STEPS):
            if step == WARM_UP:
                before = _in_use()
            x = inputs[step % len(inputs)].requires_grad_()
            model(x).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            x.grad = None
    _assert_no_more_than(before)


def test_replays_of_a_graph(cuda, randomise):
    model = randomise(_model(cuda, 0.1))
    x = torch.randn(96, 576, device=cuda, dtype=torch.bfloat16, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(model, (x,))
    before = None
    for step in range(STEPS):
        if step == WARM_UP:
            before = _in_use()
        graphed(x).float().square().mean().backward()
        model.zero_grad(set_to_none=True)
        x.grad = None
    _assert_no_more_than(before)
