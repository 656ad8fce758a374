"""GraLoRAConv1D: the transposed layer of GPT-2 with adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRAConv1D

pytorch_utils = pytest.importorskip("transformers.pytorch_utils")

OPTIONS = [
    pytest.param({"r": 8, "k": 2}, id="k2"),
    pytest.param({"r": 8, "k": 1}, id="k1"),
    pytest.param({"r": 8, "k": (4, 2)}, id="k_out4-k_in2"),
    pytest.param({"r": 8, "k": 2, "hybrid_r": 8}, id="hybrid"),
]


@pytest.fixture
def conv1d():
    """``x [.., 12]`` to ``[.., 8]``, fp64."""
    torch.manual_seed(0)
    layer = pytorch_utils.Conv1D(8, 12).double()
    nn.init.normal_(layer.bias)
    return layer


def scale(options):
    return 2 * options["r"] / (options["r"] + options.get("hybrid_r", 0))


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (0, 12)], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_forward_is_the_base_plus_the_dense_update(conv1d, options, shape, randomise, dense_update):
    layer = randomise(GraLoRAConv1D.from_conv1d(conv1d, **options))
    x = torch.randn(shape, dtype=torch.float64)
    update = dense_update(layer, "default", scale(options))
    expected = torch.einsum("...c,oc->...o", x, conv1d.weight.T + update) + conv1d.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_input_gradient(conv1d, options, randomise, dense_update):
    layer = randomise(GraLoRAConv1D.from_conv1d(conv1d, **options))
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5, 8, dtype=torch.float64)
    layer(x).backward(dy)
    weight = conv1d.weight.T + dense_update(layer, "default", scale(options))
    torch.testing.assert_close(x.grad, dy @ weight)


def test_takes_over_the_very_tensors(conv1d):
    weight, bias = conv1d.weight, conv1d.bias
    layer = GraLoRAConv1D.from_conv1d(conv1d, r=4)
    assert layer.weight is weight
    assert layer.bias is bias
    assert not weight.requires_grad


def test_sizes_have_the_names_of_transformers_too(conv1d):
    layer = GraLoRAConv1D.from_conv1d(conv1d, r=4)
    assert (layer.in_features, layer.out_features, layer.nx, layer.nf) == (12, 8, 12, 8)


def test_merge_adds_the_transposed_update(conv1d, randomise, dense_update):
    layer = randomise(GraLoRAConv1D.from_conv1d(conv1d, r=8, k=(4, 2)))
    expected = conv1d.weight.detach() + dense_update(layer, "default", 2.0).T
    layer.merge()
    torch.testing.assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize("keep", ["cpu", "device"])
def test_unmerge_restores_every_bit(conv1d, randomise, keep):
    layer = randomise(GraLoRAConv1D.from_conv1d(conv1d, r=8, k=4, hybrid_r=2))
    before = layer.weight.detach().clone()
    layer.merge(keep=keep)
    assert not torch.equal(layer.weight, before)
    layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_plain_gives_conv1d_back(conv1d):
    x = torch.randn(3, 12, dtype=torch.float64)
    expected = conv1d(x)
    plain = GraLoRAConv1D.from_conv1d(conv1d.eval(), r=4).plain()
    assert type(plain) is pytorch_utils.Conv1D
    assert plain.weight is conv1d.weight
    assert not plain.training
    assert torch.equal(plain(x), expected)


def test_copies_compute_the_same(conv1d, randomise):
    layer = randomise(GraLoRAConv1D.from_conv1d(conv1d, r=4))
    x = torch.randn(3, 12, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    assert type(twin.plain()) is pytorch_utils.Conv1D


def test_merging_a_weight_shared_with_another_layer_is_refused(conv1d):
    first, second = (GraLoRAConv1D.from_conv1d(conv1d, r=4) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"^GraLoRAConv1D\.merge: the weight is shared"):
        first.merge()
    assert not second.merged


def test_linear_layer_is_refused():
    with pytest.raises(TypeError, match=r"^GraLoRAConv1D\.from_conv1d: needs a .*Conv1D.*Linear"):
        GraLoRAConv1D.from_conv1d(nn.Linear(12, 8))


def test_refused_settings_freeze_nothing(conv1d):
    with pytest.raises(ValueError, match="k_in"):
        GraLoRAConv1D.from_conv1d(conv1d, r=5, k=5)
    assert conv1d.weight.requires_grad
