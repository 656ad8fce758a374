"""When a layer of a group computes by itself: whatever changed between the calls, it is right."""

from __future__ import annotations

import pytest
import torch
from nn_siblings import GROUP, Siblings, apart, state, together, tokens
from torch import nn
from torch.func import functional_call, vmap

import gralora

X = tokens()


def with_second_adapter(siblings):
    for layer in (siblings.q, siblings.k, siblings.v):
        layer.add_adapter("second", r=4, k=2)
    return siblings


def in_place(tensor):
    with torch.no_grad():
        tensor.mul_(2)


def another(parameter):
    """Twice the parameter, as a tensor of its own that was changed as often."""
    new = nn.Parameter(2 * parameter.detach(), parameter.requires_grad)
    with torch.no_grad():
        while new._version < parameter._version:
            new.mul_(1)
    return new


CHANGES = {
    "weight": lambda k: in_place(k.weight),
    "bias": lambda k: in_place(k.bias),
    "A": lambda k: in_place(k.gralora_A["default"]),
    "B": lambda k: in_place(k.gralora_B["default"]),
    "other-weight": lambda k: setattr(k, "weight", another(k.weight)),
    "other-A": lambda k: k.gralora_A.update({"default": another(k.gralora_A["default"])}),
    "switched": lambda k: k.set_adapter("second"),
    "both": lambda k: k.set_adapter(["default", "second"]),
    "none": lambda k: k.set_adapter([]),
    "disabled": lambda k: k.enable_adapters(False),
    "deleted": lambda k: k.delete_adapter("default"),
    "merged": lambda k: k.merge(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_layer_that_changed_since_the_first_call_computes_anew(change) -> None:
    siblings = with_second_adapter(together(bias=True))
    alone = apart(siblings)
    siblings.q(X)
    for each in (siblings, alone):
        change(each.k)
    assert torch.equal(siblings.k(X), alone.k(X))
    torch.testing.assert_close(siblings.v(X), alone.v(X))


def test_a_factor_that_trains_no_more_gets_no_gradient() -> None:
    siblings = together()
    siblings.q(X)
    siblings.k.gralora_A.requires_grad_(False)
    siblings.k.gralora_B.requires_grad_(False)
    assert not siblings.k(X).requires_grad


def test_an_input_changed_in_place_is_read_anew() -> None:
    siblings = together()
    x = X.clone()
    siblings.q(x)
    x.add_(1)
    assert torch.equal(siblings.k(x), apart(siblings).k(x))


def test_an_equal_input_that_is_another_tensor_is_computed_anew() -> None:
    siblings = together()
    x = X.clone().requires_grad_()
    siblings.q(X)
    siblings.k(x).sum().backward()
    assert x.grad is not None


def test_a_second_call_is_computed_anew() -> None:
    siblings = together()
    siblings.q(X)
    first, second = siblings.k(X), siblings.k(X)
    torch.testing.assert_close(first, second)
    assert first is not second
    assert first.data_ptr() != second.data_ptr()


def test_outputs_without_a_graph_are_not_handed_out_where_one_is_wanted() -> None:
    siblings = together()
    with torch.no_grad():
        siblings.q(X)
    assert siblings.k(X).requires_grad
    siblings.q(X)
    with torch.no_grad():
        assert not siblings.k(X).requires_grad


def test_outputs_of_another_dtype_of_autocast_are_not_handed_out() -> None:
    siblings = together()
    siblings.q(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert siblings.k(X).dtype is torch.bfloat16
        siblings.q(X)
    assert siblings.k(X).dtype is torch.float32


@pytest.mark.parametrize(
    "settings",
    [{"dropout": 0.5}, {"hybrid_r": 2}],
    ids=["dropout", "hybrid"],
)
def test_adapters_that_the_operator_lacks_are_computed_each_alone(settings, group_sizes) -> None:
    siblings = together(**settings)
    torch.manual_seed(3)
    actual = siblings(X)
    torch.manual_seed(3)
    assert all(map(torch.equal, actual, apart(siblings)(X)))
    assert group_sizes == []


def test_dropout_does_not_keep_layers_apart_that_are_evaluated(group_sizes) -> None:
    siblings = together(dropout=0.5).eval()
    torch.testing.assert_close(siblings(X), apart(siblings)(X))
    assert group_sizes == [3]


OTHERS = {
    "rank": {"r": 8, "k": 2, "alpha": 8},
    "grid": {"r": 4, "k": 4, "alpha": 8},
    "scale": {"r": 4, "k": 2, "alpha": 2},
    "dtype": {"r": 4, "k": 2, "alpha": 8, "adapter_dtype": torch.float64},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_unlike_adapters_are_computed_each_alone(other, group_sizes) -> None:
    siblings = together()
    siblings.v.add_adapter("other", **other)
    siblings.v.reset_adapter("other")
    siblings.v.set_adapter("other")
    assert all(map(torch.equal, siblings(X), apart(siblings)(X)))
    assert group_sizes == []
    siblings.v.set_adapter("default")
    siblings(X)
    assert group_sizes == [3]


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_base_that_trains_is_computed_alone(name, group_sizes) -> None:
    siblings = together(bias=True)
    getattr(siblings.k, name).requires_grad_(True)
    sum(y.sum() for y in siblings(X)).backward()
    assert getattr(siblings.k, name).grad is not None
    assert group_sizes == []


def test_hooks_that_come_first_keep_layers_apart(group_sizes) -> None:
    siblings = together()
    handle = siblings.k.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    torch.testing.assert_close(siblings(X)[1], apart(siblings).k(X))
    assert group_sizes == []
    handle.remove()
    siblings(X)
    assert group_sizes == [3]


def test_hooks_that_come_afterwards_run(group_sizes) -> None:
    siblings = together()
    siblings.k.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(siblings(X)[1], apart(siblings).k(X))
    assert group_sizes == [3]


def test_full_backward_hooks_see_the_gradients_of_their_layer() -> None:
    seen = {}
    siblings = together()
    for name in ("q", "k", "v"):
        layer = getattr(siblings, name)
        layer.register_full_backward_hook(
            lambda module, inputs, outputs, name=name: seen.update({name: outputs[0].clone()})
        )
    q, k, v = siblings(X.clone().requires_grad_())
    (q.sum() + 2 * k.sum() + 3 * v.sum()).backward()
    assert {name: float(dy.mean()) for name, dy in seen.items()} == {"q": 1, "k": 2, "v": 3}


def test_inference_mode_computes_each_alone_since_it_counts_no_changes(group_sizes) -> None:
    siblings = together()
    with torch.inference_mode():
        x = X.clone()
        siblings.q(x)
        x.add_(1)
        y = siblings.k(x)
    assert torch.equal(y, apart(siblings).k(X + 1))
    assert group_sizes == []


def test_outputs_of_inference_mode_do_not_leave_it(group_sizes) -> None:
    siblings = together()
    with torch.inference_mode():
        siblings.q(X)
    assert group_sizes == [3]
    with torch.no_grad():
        assert not siblings.k(X).is_inference()


def test_layers_made_in_inference_mode_are_computed_each_alone() -> None:
    with torch.inference_mode():
        siblings = together()
    with torch.no_grad():
        torch.testing.assert_close(siblings(X), apart(siblings)(X))


def test_functional_calls_use_the_tensors_they_are_given() -> None:
    siblings = together()
    tensors = {name: 2 * p.detach() for name, p in siblings.named_parameters()}
    torch.testing.assert_close(
        functional_call(siblings, tensors, (X,)), functional_call(apart(siblings), tensors, (X,))
    )


def test_transforms_are_refused_as_for_one_layer() -> None:
    with pytest.raises(NotImplementedError, match=r"linear.*: .*torch\.func"):
        vmap(together())(tokens(2, 3))


def test_a_subclass_of_tensor_is_computed_by_each_layer() -> None:
    class Marked(torch.Tensor):
        pass

    siblings = together()
    assert all(type(y) is Marked for y in siblings(X.as_subclass(Marked)))


@pytest.mark.parametrize("known", [True, False], ids=["together", "observed"])
def test_replicas_of_data_parallelism_compute_alone_and_are_not_observed(known, group_sizes):
    siblings = together()
    alone = apart(siblings)
    if not known:
        siblings.q(X), siblings.k(X + 1), siblings.q(X + 2)
    del group_sizes[:]
    for name in ("q", "k", "v", "q", "k", "v"):
        layer = getattr(siblings, name)
        replica = layer._replicate_for_data_parallel()
        for tensors in ("_parameters", "_modules"):
            setattr(replica, tensors, dict(getattr(layer, tensors)))
        torch.testing.assert_close(replica(X), getattr(alone, name)(X))
    for _ in range(4):
        torch.testing.assert_close(siblings(X), alone(X))
    assert set(group_sizes) == {3}
    assert state(siblings) == "TOGETHER"


def test_an_input_of_another_dtype_is_refused_as_for_one_layer() -> None:
    siblings = together()
    for each in (siblings, apart(siblings)):
        with pytest.raises(TypeError, match="gralora::linear"):
            each.q(X.double())


def test_switching_off_and_on(group_sizes) -> None:
    siblings = Siblings()
    siblings(X)
    assert gralora.share_inputs(siblings, groups=GROUP) == 1
    siblings(X)
    assert gralora.share_inputs(siblings, groups=()) == 0
    siblings(X)
    assert group_sizes == [3]
