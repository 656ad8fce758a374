"""A layer whose weight lacks a part: off, others on, merged, deleted, copied, saved and refused."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from gralora.nn import GraLoRALinear, GraLoRAWrapper


def _layer(dtype=torch.float64, names=("default",), **settings):
    """The base layer's twin, an adapted layer, and inputs."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48, dtype=dtype)
    base = copy.deepcopy(linear)
    settings = {"r": 8, "k": (2, 4), "init_weights": "pissa", **settings}
    layer = GraLoRALinear.from_linear(linear, **settings)
    for name in names[1:]:
        layer.add_adapter(name, **settings)
    return base, layer, torch.randn(5, 64, dtype=dtype)


def _train(layer, name="default"):
    """Give an adapter other values, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factors in (layer.gralora_A, layer.gralora_B):
            noise = torch.randn(factors[name].shape, generator=generator, dtype=torch.float64)
            factors[name].add_(0.1 * noise)
    return layer


def test_trained_layer_is_the_base_and_the_difference_of_its_factors():
    base, layer, x = _layer()
    delta = _train(layer).delta_weight()
    assert delta.norm() > 0.1
    torch.testing.assert_close(layer(x), base(x) + x @ delta.T)


def test_difference_of_a_fresh_adapter_is_zero():
    _, layer, _ = _layer()
    assert not layer.delta_weight().any()


def test_difference_has_gradients():
    _, layer, _ = _layer()
    _train(layer).delta_weight().square().sum().backward()
    assert layer.gralora_A["default"].grad.any()
    assert layer.principal_A["default"].grad is None


def test_switched_off_it_computes_what_the_base_does():
    base, layer, x = _layer()
    _train(layer).enable_adapters(False)
    torch.testing.assert_close(layer(x), base(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_switched_off_it_is_off_by_roundings_of_its_dtype(dtype):
    base, layer, x = _layer(dtype)
    _train(layer).enable_adapters(False)
    exact = base.double()(x.double())
    bound = 8 * torch.finfo(dtype).eps * exact.abs().max()
    assert (layer(x).double() - exact).abs().max() <= bound


def test_switched_on_again_it_computes_the_same_bits():
    _, layer, x = _layer()
    before = _train(layer)(x)
    layer.enable_adapters(False)
    layer.enable_adapters(True)
    assert torch.equal(layer(x), before)


def test_input_has_the_bases_gradient_while_it_is_off():
    base, layer, x = _layer()
    _train(layer).enable_adapters(False)
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(base(x).sum(), x)
    (got,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(got, wanted)


def test_another_adapter_acts_on_the_base():
    base, layer, x = _layer()
    _train(layer)
    layer.add_adapter("plain", r=4, k=2)
    layer.set_adapter("plain")
    torch.nn.init.ones_(layer.gralora_B["plain"])
    torch.testing.assert_close(layer(x), base(x) + x @ layer.delta_weight("plain").T)


@pytest.mark.parametrize("active", [(), ("default",), ("second",), ("second", "default")], ids=str)
def test_two_of_them_act_by_their_differences(active):
    base, layer, x = _layer(names=("default", "second"))
    _train(_train(layer), "second")
    layer.set_adapter(active)
    wanted = base(x) + sum(x @ layer.delta_weight(name).T for name in active)
    torch.testing.assert_close(layer(x), wanted)


def test_the_second_starts_from_the_base_and_not_from_what_the_first_left():
    _, layer, _ = _layer(names=("default", "second"))
    parts = [layer.principal_B[name] for name in ("default", "second")]
    torch.testing.assert_close(parts[0].abs(), parts[1].abs())


def test_dropout_spares_the_part_that_stands_in():
    base, layer, x = _layer(dropout=0.5)
    layer.set_adapter(())
    torch.testing.assert_close(layer.train()(x), base(x))


@pytest.mark.parametrize("keep", ["cpu", "device", False], ids=str)
def test_merged_weight_is_the_base_and_the_difference(keep):
    base, layer, x = _layer()
    wanted = base.weight + _train(layer).delta_weight()
    layer.merge(keep=keep)
    torch.testing.assert_close(layer.weight, wanted, check_dtype=False)
    torch.testing.assert_close(layer(x), x @ wanted.T + base.bias)


def test_unmerging_restores_every_bit_of_the_residual():
    _, layer, x = _layer(torch.bfloat16)
    residual, before = layer.weight.detach().clone(), _train(layer)(x)
    layer.merge()
    layer.unmerge()
    assert torch.equal(layer.weight, residual)
    assert torch.equal(layer(x), before)


def test_switching_off_while_merged_gives_the_base():
    base, layer, x = _layer()
    _train(layer).merge()
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), base(x))


def test_merging_another_leaves_the_part_acting():
    base, layer, x = _layer()
    _train(layer)
    layer.add_adapter("plain", r=4, k=2)
    torch.nn.init.ones_(layer.gralora_B["plain"])
    layer.set_adapter("plain")
    layer.merge()
    torch.testing.assert_close(layer(x), base(x) + x @ layer.delta_weight("plain").T)


def test_deleting_gives_the_weight_its_part_back():
    base, layer, x = _layer()
    _train(layer).delete_adapter("default")
    torch.testing.assert_close(layer.weight, base.weight)
    torch.testing.assert_close(layer(x), base(x))
    assert not list(layer.principal_A.keys())
    torch.testing.assert_close(layer.plain()(x), base(x))


def test_deleting_while_another_is_merged_mends_the_kept_weight_too():
    base, layer, x = _layer()
    layer.add_adapter("plain", r=4, k=2)
    torch.nn.init.ones_(layer.gralora_B["plain"])
    layer.set_adapter("plain")
    layer.merge()
    wanted = layer(x)
    layer.delete_adapter("default")
    torch.testing.assert_close(layer(x), wanted)
    layer.unmerge()
    torch.testing.assert_close(layer.weight, base.weight)


def test_resetting_gives_back_the_factors_that_it_started_with():
    base, layer, x = _layer()
    before, residual = layer.gralora_A["default"].detach().clone(), layer.weight.detach().clone()
    _train(layer).reset_adapter("default")
    assert torch.equal(layer.gralora_A["default"], before)
    assert torch.equal(layer.weight, residual)
    torch.testing.assert_close(layer(x), base(x))


def test_resetting_everything_starts_from_the_new_weight():
    _, layer, x = _layer(names=("default", "second"))
    torch.manual_seed(9)
    layer.reset_parameters()
    torch.manual_seed(9)
    plain = torch.nn.Linear(64, 48, dtype=torch.float64)
    layer.set_adapter("second")
    torch.testing.assert_close(layer(x), plain(x))


def test_values_from_before_a_reset_do_not_matter():
    _, layer, x = _layer()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    layer.reset_parameters()
    torch.testing.assert_close(layer(x), x @ layer.base_matrix().T + layer.bias)


def test_state_dict_carries_over_to_another_layer():
    _, layer, x = _layer()
    _train(layer)
    torch.manual_seed(5)
    other = GraLoRALinear(64, 48, r=8, k=(2, 4), dtype=torch.float64, init_weights="pissa")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    other.enable_adapters(False)
    layer.enable_adapters(False)
    assert torch.equal(other(x), layer(x))


def test_state_dict_of_a_merged_layer_has_the_residual():
    _, layer, _ = _layer()
    residual = layer.weight.detach().clone()
    _train(layer).merge()
    assert torch.equal(layer.state_dict()["weight"], residual)


def test_names_in_the_state_dict_are_those_of_saved_files():
    _, layer, _ = _layer()
    names = ["weight", "bias", "gralora_A.default", "gralora_B.default"]
    names += ["principal_A.default", "principal_B.default"]
    assert list(layer.state_dict()) == names


LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_cast_leaves_the_parts_as_they_were_taken(dtype):
    _, layer, _ = _layer(torch.float32)
    parts = [layer.principal_A["default"].clone(), layer.principal_B["default"].clone()]
    layer.to(dtype)
    assert layer.weight.dtype == layer.gralora_A["default"].dtype == dtype
    assert torch.equal(layer.principal_A["default"], parts[0])
    assert torch.equal(layer.principal_B["default"], parts[1])


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_after_a_cast_the_base_is_no_further_off_than_a_cast_base(dtype):
    base, layer, _ = _layer(torch.float32)
    exact = base.weight.double()
    rounded = base.weight.to(dtype).double()
    layer.to(dtype)
    assert (layer.base_matrix() - exact).norm() <= (rounded - exact).norm()


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_a_cast_layer_computes_what_the_base_does_up_to_roundings(dtype, on):
    base, layer, x = _layer(torch.float32)
    layer.to(dtype).enable_adapters(on)
    exact = base.double()(x.double())
    bound = 8 * torch.finfo(dtype).eps * exact.abs().max()
    assert (layer(x.to(dtype)).double() - exact).abs().max() <= bound


def test_a_cast_difference_has_the_factors_dtype():
    _, layer, _ = _layer(torch.float32)
    assert layer.to(torch.bfloat16).delta_weight().dtype == torch.bfloat16


def test_a_cast_to_more_precision_takes_the_parts_along():
    base, layer, x = _layer(torch.float32)
    layer.double().enable_adapters(False)
    torch.testing.assert_close(layer(x.double()), base.double()(x.double()), rtol=1e-5, atol=1e-6)
    assert layer.principal_A["default"].dtype == torch.float64


def test_making_the_whole_layer_train_leaves_the_parts_frozen():
    _, layer, x = _layer()
    before = layer.principal_B["default"].clone()
    layer.requires_grad_(True).set_adapter(())
    layer(x).sum().backward()
    assert not layer.principal_B["default"].requires_grad
    assert layer.principal_B["default"].grad is None
    assert not any("principal" in name for name, _ in layer.named_parameters())
    assert torch.equal(layer.principal_B["default"], before)


def test_a_copied_layer_is_independent():
    base, layer, x = _layer()
    twin = copy.deepcopy(layer)
    _train(twin).delete_adapter("default")
    torch.testing.assert_close(layer(x), base(x))
    torch.testing.assert_close(twin(x), base(x))


def test_training_twice_from_one_seed_gives_the_same_bits():
    results = []
    for _ in range(2):
        _, layer, x = _layer(torch.float32)
        optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            layer(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(layer(x))
    assert torch.equal(*results)


def test_it_compiles_without_a_break_on_and_off():
    base, layer, x = _layer(torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    layer.enable_adapters(False)
    torch.testing.assert_close(compiled(x), base(x))


def _fails(error, text, **settings):
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 16)
    before = linear.weight.detach().clone()
    with pytest.raises(error, match=text):
        GraLoRALinear.from_linear(linear, **{"r": 4, "init_weights": "pissa", **settings})
    assert torch.equal(linear.weight, before)
    assert linear.weight.requires_grad


def test_a_rank_beyond_a_blocks_sizes_is_refused():
    text = r"rank of a block must not exceed its sizes, got s=8, blocks of 8 x 4 \(at most r=8 "
    _fails(ValueError, text, r=16, k=2)


@pytest.mark.parametrize("alpha", [0, -4])
def test_a_scale_that_is_not_positive_is_refused(alpha):
    _fails(ValueError, f"alpha must be positive, got alpha={alpha}", alpha=alpha)


def test_a_weight_without_values_is_refused():
    with pytest.raises(RuntimeError, match="needs a weight with values, got one on the meta"):
        GraLoRALinear(8, 16, r=4, device="meta", init_weights="pissa")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value):
    linear = torch.nn.Linear(8, 16)
    linear.weight.data[3, 5] = value
    with pytest.raises(ValueError, match="needs a finite weight, got an Inf or NaN in it"):
        GraLoRALinear.from_linear(linear, r=4, init_weights="pissa")
    assert linear.weight.requires_grad


def test_a_shared_weight_is_refused():
    linear = torch.nn.Linear(8, 16)
    keeper = GraLoRALinear.from_linear(linear, r=4)
    with pytest.raises(RuntimeError, match="which another GraLoRA layer shares"):
        GraLoRALinear.from_linear(linear, r=4, init_weights="pissa")
    keeper.add_adapter("own", r=4, init_weights="pissa")


def test_a_wrapped_layer_is_refused_with_what_it_takes():
    text = re.escape('got GraLoRAWrapper (accepted: "kaiming", "gaussian", "orthogonal")')
    with pytest.raises(TypeError, match=text):
        GraLoRAWrapper(torch.nn.Linear(8, 16), r=4, init_weights="pissa")
    with pytest.raises(TypeError, match=text):
        GraLoRAWrapper(torch.nn.Linear(8, 16), r=4).add_adapter("b", r=4, init_weights="pissa")


def test_a_merged_layer_is_refused():
    layer = GraLoRALinear(8, 16, r=4)
    layer.merge()
    with pytest.raises(RuntimeError, match=r"no adapter may be merged, got \['default'\]"):
        layer.add_adapter("b", r=4, init_weights="pissa")
    assert "b" not in layer.adapters


def test_the_plain_layer_is_refused_while_its_weight_lacks_a_part():
    _, layer, _ = _layer()
    with pytest.raises(RuntimeError, match=r"plain: the weight lacks what \['default'\] took out"):
        layer.plain()
    layer.merge(keep=False)
    assert type(layer.plain()) is torch.nn.Linear


def test_a_base_weight_without_the_part_is_refused():
    base, layer, x = _layer()
    before = layer(x)
    with pytest.raises(RuntimeError, match=r"got weight without principal_A\.default"):
        layer.load_state_dict(base.state_dict(), strict=False)
    assert torch.equal(layer(x), before)


def test_a_start_that_fails_leaves_no_adapter(monkeypatch: pytest.MonkeyPatch):
    _, layer, _ = _layer()
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    def fail(*args: object, **kwargs: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    with monkeypatch.context() as patched:
        patched.setattr(torch.linalg, "svd", fail)
        with pytest.raises(torch.linalg.LinAlgError):
            layer.add_adapter("late", init_weights="pissa", r=8, k=2)
    assert "late" not in layer.adapters
    after = layer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    layer.add_adapter("late", init_weights="pissa", r=8, k=2)


@pytest.mark.parametrize("missing", ["weight", "principal_A.default", "principal_B.default"])
def test_a_state_with_a_part_of_what_belongs_together_is_refused(missing: str):
    (_, layer, _), (_, other, _) = _layer(), _layer()
    state = other.state_dict()
    del state[missing]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"without {re.escape(missing)}"):
        layer.load_state_dict(state, strict=False)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
