"""Groups under gradient checkpointing: a repeated pass computes as the first one did."""

from __future__ import annotations

import pytest
import torch
from nn_siblings import apart, assert_same, state, together, tokens
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

# In double precision, since what is repeated is summed in another order.
DOUBLE = {"dtype": torch.float64}
X, CONTEXT = tokens(**DOUBLE), tokens(seed=2, **DOUBLE)
KINDS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])


def attention(siblings, x, context=None):
    q, k, v = siblings(x, context)
    return torch.softmax(q[:, :8] @ k.T, -1) @ v


def gradients(siblings, *steps, reentrant=None):
    """Gradients of a sum over steps, each of them an input, or an input and a context."""
    siblings.zero_grad()
    inputs = [[x.detach().clone().requires_grad_() for x in step] for step in steps]
    losses = []
    for step in inputs:
        if reentrant is None:
            y = attention(siblings, *step)
        else:
            y = checkpoint(attention, siblings, *step, use_reentrant=reentrant)
        losses.append(y.square().sum())
    sum(losses).backward()
    found = {f"x{i}.{j}": x.grad for i, step in enumerate(inputs) for j, x in enumerate(step)}
    return found | {name: p.grad for name, p in siblings.named_parameters() if p.requires_grad}


@KINDS
@pytest.mark.parametrize("early_stop", [True, False], ids=["early-stop", "to-the-end"])
def test_gradients_are_those_without_checkpointing(reentrant, early_stop, group_sizes) -> None:
    siblings = together(**DOUBLE)
    expected = gradients(apart(siblings), [X])
    with set_checkpoint_early_stop(early_stop):
        for _ in range(2):
            assert_same(gradients(siblings, [X], reentrant=reentrant), expected)
    # Forward and repeated.
    assert group_sizes == [3] * 4
    assert state(siblings) == "TOGETHER"


@KINDS
def test_a_cross_attention_changes_its_way_between_steps_alone(reentrant, group_sizes) -> None:
    siblings = together(**DOUBLE)
    expected = gradients(apart(siblings), [X, CONTEXT])
    for _ in range(6):
        assert_same(gradients(siblings, [X, CONTEXT], reentrant=reentrant), expected)
    assert state(siblings) == "TOGETHER"
    assert group_sizes[-2:] == [2, 2]


@KINDS
def test_passes_that_wait_for_their_backward_are_repeated_as_they_were(reentrant) -> None:
    siblings = together(**DOUBLE)
    steps = [[X, CONTEXT], [CONTEXT, X], [X, CONTEXT]]
    expected = gradients(apart(siblings), *steps)
    for _ in range(3):
        assert_same(gradients(siblings, *steps, reentrant=reentrant), expected)
    assert state(siblings) == "TOGETHER"


def test_a_group_does_not_change_its_way_within_a_pass_that_may_be_repeated(group_sizes) -> None:
    def twice(x, context):
        return attention(siblings, x, context) + attention(siblings, x.cos(), context.cos())

    def run(module_of):
        x, context = (each.clone().requires_grad_() for each in (X, CONTEXT))
        module_of(x, context).square().sum().backward()
        return {"x": x.grad, "context": context.grad}

    siblings = together(**DOUBLE)
    for _ in range(4):
        actual = run(lambda *inputs: checkpoint(twice, *inputs, use_reentrant=False))
        assert_same(actual, run(twice))
    assert group_sizes[-1] == 2


@pytest.mark.parametrize("inside", ["q", "k", "kv"])
def test_parts_of_a_group_may_be_checkpointed(inside) -> None:
    def outputs(siblings, x, checkpointed):
        def some(x):
            return tuple(getattr(siblings, name)(x).sin() for name in inside)

        found = {}
        for name in ("q", "k", "v"):
            if name == inside[0]:
                made = checkpoint(some, x, use_reentrant=False) if checkpointed else some(x)
                found |= zip(inside, made, strict=True)
            elif name not in inside:
                found[name] = getattr(siblings, name)(x)
        return sum(y.square().sum() for y in found.values())

    siblings = together(**DOUBLE)
    alone = apart(siblings)
    for _ in range(4):
        for each, checkpointed in ((siblings, True), (alone, False)):
            each.zero_grad()
            outputs(each, X, checkpointed).backward()
        assert_same(
            {name: p.grad for name, p in siblings.named_parameters()},
            {name: p.grad for name, p in alone.named_parameters()},
        )


def test_what_an_early_stop_leaves_over_does_not_count_against_a_group(group_sizes) -> None:
    def region(x):
        # All that a backward pass needs is there before k and v are called a second time.
        q = siblings.q(x).sin()
        return q + siblings.k(x).sum() + siblings.v(x).sum()

    siblings = together(**DOUBLE)
    for _ in range(4):
        x = X.clone().requires_grad_()
        checkpoint(region, x, use_reentrant=False).sum().backward()
    assert state(siblings) == "TOGETHER"
    assert group_sizes == [3] * 8
