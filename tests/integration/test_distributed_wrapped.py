"""Two processes that train adapters over quantised and unknown layers end up where one does."""

from __future__ import annotations

import pytest
import torch
from wrapped_group import BASES, adapters, rows, train, wrapped

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture(scope="module")
def data_parallel(run_workers):
    """What each rank saved, by kind of base layer."""
    return run_workers("wrapped_ddp.py")


@pytest.fixture(params=BASES)
def kind(request):
    """Each kind of base layer in turn."""
    library, _ = BASES[request.param]
    if library is not None:
        pytest.importorskip(library)
    return request.param


def test_data_parallel_training_over_a_wrapped_layer(kind, data_parallel):
    network = wrapped(kind)
    before = {name: value.clone() for name, value in adapters(network).items()}
    train(network, *rows())
    expected = adapters(network)
    assert len(expected) == 8
    assert not any(torch.equal(value, before[name]) for name, value in expected.items())
    expected["output"] = network(rows()[0]).detach()
    for rank in data_parallel:
        assert rank[kind].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(rank[kind][name], value, msg=lambda text, n=name: n + text)


def test_one_share_alone_ends_up_elsewhere(kind, data_parallel):
    network = wrapped(kind)
    train(network, *(whole[::2] for whole in rows()))
    for name, value in adapters(network).items():
        assert not torch.allclose(value, data_parallel[0][kind][name], rtol=1e-3), name
