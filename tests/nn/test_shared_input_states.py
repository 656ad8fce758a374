"""Who is computed together: what a group learns, what it keeps, what copies and threads see."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from nn_siblings import apart, state, together, tokens
from torch import Tensor

import gralora

X, CONTEXT = tokens(), tokens(seed=2)


def assert_right(siblings, *inputs):
    torch.testing.assert_close(siblings(*inputs), apart(siblings)(*inputs))


def test_keys_and_values_of_a_cross_attention_are_computed_together(group_sizes) -> None:
    siblings = together()
    for seed in range(5):
        assert_right(siblings, tokens(seed=seed), tokens(seed=seed + 5))
    # The first round left outputs that nobody took, and the next two were observed.
    assert group_sizes == [3, 2, 2]
    assert state(siblings) == "TOGETHER"


def test_an_order_of_calls_that_is_another_is_learnt(group_sizes) -> None:
    siblings = together()
    for seed in range(4):
        x = tokens(seed=seed)
        v, k, q = siblings.v(x), siblings.k(x), siblings.q(x)
        torch.testing.assert_close((q, k, v), apart(siblings)(x))
    assert group_sizes == [3, 3]


def test_layers_that_never_share_an_input_are_let_alone(group_sizes) -> None:
    siblings = together()
    for _ in range(4):
        siblings.q(X), siblings.k(CONTEXT), siblings.v(X + 1)
    assert group_sizes == [3]
    assert state(siblings) == "OBSERVING"


def test_layers_that_share_now_and_then_are_let_alone_for_good(group_sizes) -> None:
    siblings = together()
    for _ in range(6):
        for inputs in ((X,), (X,), (X, CONTEXT)):
            assert_right(siblings, *inputs)
    assert state(siblings) == "APART"
    before = len(group_sizes)
    siblings(X)
    assert len(group_sizes) == before


def test_a_call_of_one_layer_now_and_then_does_not_end_a_group(group_sizes) -> None:
    siblings = together()
    siblings(X)
    siblings.q(X)
    for _ in range(3):
        assert_right(siblings, X)
    assert state(siblings) == "TOGETHER"


def test_a_deleted_layer_leaves_the_others_right() -> None:
    siblings = together()
    expected = apart(siblings)(X)[1:]
    del siblings.q
    torch.testing.assert_close((siblings.k(X), siblings.v(X)), expected)


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no-grad"])
def test_nothing_is_kept_after_a_round(recorded) -> None:
    siblings = together()
    with torch.set_grad_enabled(recorded):
        x = X.clone().requires_grad_(recorded)
        tensors = [x, *siblings(x)]
    kept = [weakref.ref(tensor) for tensor in tensors]
    gc.disable()
    try:
        del tensors, x
        assert [reference() for reference in kept] == [None] * 4
    finally:
        gc.enable()


def test_what_a_round_left_over_goes_with_the_next_round_of_any_group() -> None:
    first, second = together(), together()
    x = X.clone()
    kept = weakref.ref(x)
    first.q(x)
    del x
    assert kept() is not None
    second.q(X)
    assert kept() is None


def test_what_a_round_left_over_goes_with_the_layers() -> None:
    siblings = together()
    x = X.clone()
    kept = [weakref.ref(each) for each in (x, siblings.q, siblings.k.weight)]
    siblings.q(x)
    del siblings, x
    gc.collect()
    assert [reference() for reference in kept] == [None] * 3


def test_layers_do_not_keep_their_siblings_alive() -> None:
    siblings = together()
    siblings(X)
    q, kept = siblings.q, weakref.ref(siblings.k)
    del siblings
    gc.collect()
    assert kept() is None
    assert q(X).shape == (5, 16)


def through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch-save": through_torch_save,
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("waiting", [False, True], ids=["between-rounds", "in-a-round"])
def test_copies_are_independent_and_have_a_group_of_their_own(make, waiting, group_sizes) -> None:
    siblings = together()
    if waiting:
        siblings.q(X)
    copied = make(siblings)
    expected = apart(siblings)(X)
    with torch.no_grad():
        for parameter in siblings.parameters():
            parameter.zero_()
    del group_sizes[:]
    torch.testing.assert_close(copied(X), expected)
    assert group_sizes == [3]
    assert copied.q._shared_input is copied.v._shared_input
    assert copied.q._shared_input is not siblings.q._shared_input


def test_a_shallow_copy_changes_nothing_of_the_group(group_sizes) -> None:
    siblings = together()
    copied = copy.copy(siblings.q)
    torch.testing.assert_close(copied(X), apart(siblings).q(X))
    assert group_sizes == []
    siblings(X)
    assert group_sizes == [3]


def test_layers_copied_one_by_one_are_right_and_compute_alone(group_sizes) -> None:
    siblings = together()
    copies = [copy.deepcopy(layer) for layer in (siblings.q, siblings.k, siblings.v)]
    torch.testing.assert_close(tuple(layer(X) for layer in copies), apart(siblings)(X))
    assert group_sizes == []


def test_a_copy_of_one_layer_is_as_large_as_it_is_without_a_group() -> None:
    siblings = together()
    siblings.q(X)
    sizes = [len(pickle.dumps(each.q)) for each in (siblings, apart(siblings))]
    assert sizes[0] - sizes[1] < 200


def test_names_and_states_are_those_of_layers_apart() -> None:
    siblings = together()
    siblings.q(X)
    alone = apart(siblings)
    assert list(siblings.state_dict()) == list(alone.state_dict())
    assert [n for n, _ in siblings.named_modules()] == [n for n, _ in alone.named_modules()]
    assert [n for n, _ in siblings.named_buffers()] == [n for n, _ in alone.named_buffers()]
    assert repr(siblings) == repr(alone)


def test_threads_that_take_turns_get_outputs_of_their_own_inputs() -> None:
    siblings = together()
    inputs = [tokens(seed=seed) for seed in range(3)]
    expected = [apart(siblings)(x) for x in inputs]
    turns = threading.Barrier(len(inputs), timeout=60)
    results: dict[int, tuple[Tensor, ...]] = {}

    def run(index: int) -> None:
        for _ in range(20):
            outputs = []
            for layer in (siblings.q, siblings.k, siblings.v):
                turns.wait()
                outputs.append(layer(inputs[index]))
            results[index] = tuple(outputs)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outputs in enumerate(expected):
        torch.testing.assert_close(results[index], outputs)
    assert state(siblings) == "TOGETHER"


def test_threads_with_one_input_do_not_take_the_outputs_of_each_other() -> None:
    siblings = together()
    siblings.q(X)
    other: list[Tensor] = []
    thread = threading.Thread(target=lambda: other.append(siblings.k(X)))
    thread.start()
    thread.join()
    assert other[0].data_ptr() != siblings.k(X).data_ptr()


def test_compiled_layers_are_traced_each_by_itself_without_a_second_graph(group_sizes) -> None:
    siblings = together()
    compiled = torch.compile(siblings, backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            torch.testing.assert_close(compiled(X), apart(siblings)(X))
        assert group_sizes == []
        siblings(X)
        torch.testing.assert_close(compiled(X), apart(siblings)(X))
    assert group_sizes == [3]


def test_an_error_in_the_operator_leaves_nothing_waiting(monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    siblings = together()
    with monkeypatch.context() as patched:
        patched.setattr(gralora.functional, "gralora_linear_group", fail)
        with pytest.raises(torch.OutOfMemoryError):
            siblings(X)
    assert_right(siblings, X)
    assert state(siblings) == "TOGETHER"
