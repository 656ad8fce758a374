"""Adapters over quantised layers of bitsandbytes and torchao, with the libraries themselves."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from gralora.nn import GraLoRALinear, GraLoRAWrapper

N, M = 256, 128


def weight_and_bias(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(M, N, generator=generator)
    return weight.to(dtype), torch.randn(M, generator=generator).to(dtype)


def eight_bit(dtype=torch.float32):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(N, M, has_fp16_weights=False)
    weight, bias = weight_and_bias(dtype)
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer.bias = nn.Parameter(bias)
    return layer.to("cpu")


def four_bit(kind, dtype=torch.float32, **settings):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(N, M, quant_type=kind, compute_dtype=dtype, **settings)
    weight, bias = weight_and_bias(dtype)
    layer.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        quant_type=kind,
        module=layer,
        quant_storage=settings.get("quant_storage", torch.uint8),
        compress_statistics=settings.get("compress_statistics", True),
    )
    layer.bias = nn.Parameter(bias)
    return layer.to("cpu")


def torchao_int8(dtype=torch.float32, group=None):
    quantization = pytest.importorskip("torchao.quantization")
    layer = nn.Linear(N, M, dtype=dtype)
    weight, bias = weight_and_bias(dtype)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    config = quantization.Int8WeightOnlyConfig(
        **({} if group is None else {"granularity": quantization.PerGroup(group)})
    )
    quantization.quantize_(layer, config)
    return layer


BASES = {
    "bnb-int8": eight_bit,
    "bnb-nf4": lambda dtype=torch.float32: four_bit("nf4", dtype),
    "bnb-nf4-plain-statistics": lambda dtype=torch.float32: four_bit(
        "nf4", dtype, compress_statistics=False
    ),
    "bnb-nf4-stored-as-bf16": lambda dtype=torch.float32: four_bit(
        "nf4", dtype, quant_storage=torch.bfloat16
    ),
    "bnb-fp4": lambda dtype=torch.float32: four_bit("fp4", dtype),
    "torchao-int8": torchao_int8,
    "torchao-int8-groups": lambda dtype=torch.float32: torchao_int8(dtype, group=64),
}


def dense(layer: nn.Module) -> Tensor:
    """The weight that a quantised layer stands for, [M, N] in fp64, by the library's own means."""
    kind = type(layer).__name__
    if kind == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        weight = layer.weight
        return dequantize_4bit(weight.data, copy.deepcopy(weight.quant_state)).double()
    if kind == "Linear8bitLt":
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        return layer.weight.data.double() * scales.double()[:, None] / 127
    return layer.weight.dequantize().double()


def state_of(layer: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a layer's state, by key; torchao's weight by its parts."""
    parts = {}
    for key, value in layer.state_dict().items():
        if hasattr(value, "qdata"):
            parts |= {f"{key}.qdata": value.qdata.clone(), f"{key}.scale": value.scale.clone()}
        elif isinstance(value, Tensor):
            parts[key] = value.clone()
    return parts


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether two states have the same bits, those of NaN too."""
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype
        and torch.equal(
            one[key].contiguous().view(torch.uint8), two[key].contiguous().view(torch.uint8)
        )
        for key in one
    )


@pytest.fixture(params=BASES.values(), ids=BASES.keys())
def make(request):
    """Makes a quantised layer, the same at every call."""
    return request.param


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, N, generator=generator, requires_grad=True)


def adapted(base, randomise, **options):
    settings = {"r": 8, "k": 2, "alpha": 1} | options
    return randomise(GraLoRAWrapper(base, **settings))


@pytest.mark.parametrize(
    "options", [{}, {"k": (4, 2)}, {"hybrid_r": 8}], ids=["k2", "k_out4-k_in2", "hybrid"]
)
def test_output_is_the_bases_and_the_update(make, x, options, randomise, dense_update):
    layer = adapted(make(), randomise, **options)
    update = dense_update(layer, "default", 1 / (8 + options.get("hybrid_r", 0)))
    delta = torch.einsum("...c,oc->...o", x.detach().double(), update)
    expected = make()(x).double() + delta
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_output_is_that_of_the_dequantised_weight(make, x, randomise, dense_update):
    layer = adapted(make(), randomise)
    weight = dense(layer.base_layer) + dense_update(layer, "default", 1 / 8)
    expected = torch.einsum("...c,oc->...o", x.detach().double(), weight) + layer.bias.double()
    # 8-bit layers of bitsandbytes quantise their input too.
    error = (layer(x).double() - expected).norm() / expected.norm()
    assert error < 0.02


def test_gradients_of_input_and_factors(make, x, randomise):
    base = make()
    layer = adapted(base, randomise, hybrid_r=4)
    dy = torch.randn(2, 5, M, generator=torch.Generator().manual_seed(2))
    layer(x).backward(dy)
    plain = GraLoRALinear(N, M, r=8, k=2, alpha=1, hybrid_r=4, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(dense(base))
        for name, parameter in plain.named_parameters():
            if "ora_" in name:
                parameter.copy_(layer.get_parameter(name))
    exact = x.detach().double().requires_grad_()
    plain(exact).backward(dy.double())
    named = [(name, p.grad) for name, p in plain.named_parameters() if p.grad is not None]
    assert len(named) == 4
    for name, gradient in named:
        ours = layer.get_parameter(name).grad.double()
        torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-4)
    assert (x.grad.double() - exact.grad).norm() / exact.grad.norm() < 0.02


def test_adapter_is_fp32_and_output_keeps_its_dtype(make):
    layer = GraLoRAWrapper(make(torch.bfloat16), r=8)
    assert {p.dtype for p in layer.parameters() if p.requires_grad} == {torch.float32}
    assert layer(torch.randn(3, N, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_fresh_adapter_changes_nothing(make, x):
    base = make().eval()
    expected = base(x)
    assert torch.equal(GraLoRAWrapper(base, r=8)(x), expected)


def test_merge_says_the_error_it_made(make, randomise, dense_update):
    layer = adapted(make(), randomise)
    exact = dense(layer.base_layer) + dense_update(layer, "default", 1 / 8)
    error = layer.merge()
    measured = (dense(layer.base_layer) - exact).norm() / exact.norm()
    assert error == pytest.approx(float(measured), rel=1e-3)
    assert 0 < error < 0.15


def test_merged_layer_computes_with_the_new_weight(make, x, randomise):
    layer = adapted(make(), randomise)
    layer(x)
    layer.merge()
    expected = torch.einsum("...c,oc->...o", x.detach().double(), dense(layer.base_layer))
    expected += layer.bias.double()
    assert (layer(x).double() - expected).norm() / expected.norm() < 0.02


def test_settings_survive_a_merge(make, randomise):
    layer = adapted(make(torch.bfloat16), randomise)
    before = {key: (value.dtype, value.shape) for key, value in state_of(layer.base_layer).items()}
    quant_state = getattr(layer.weight, "quant_state", None)
    layer.merge()
    after = {key: (value.dtype, value.shape) for key, value in state_of(layer.base_layer).items()}
    assert after == before
    for setting in () if quant_state is None else ("blocksize", "quant_type", "dtype", "nested"):
        assert getattr(layer.weight.quant_state, setting) == getattr(quant_state, setting)


def test_merging_an_update_of_zero_changes_little(make):
    layer = GraLoRAWrapper(make(), r=8)
    before = dense(layer.base_layer)
    assert layer.merge() < 1e-2
    assert (dense(layer.base_layer) - before).norm() / before.norm() < 1e-2


@pytest.mark.parametrize("keep", ["cpu", "device"])
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
def test_unmerge_restores_every_bit(make, x, randomise, keep, called):
    layer = adapted(make(), randomise)
    if called:
        layer(x)
    before, expected = state_of(layer.base_layer), layer(x)
    layer.merge(keep=keep)
    assert not same(state_of(layer.base_layer), before)
    layer.unmerge()
    assert same(state_of(layer.base_layer), before)
    assert torch.equal(layer(x), expected)


def test_layer_that_served_on_the_cpu_is_merged_and_restored(make, x, randomise):
    """bitsandbytes packs 4-bit weights anew for processors that have bf16 products."""
    layer = adapted(make(torch.bfloat16), randomise).eval()
    x = x.detach().bfloat16()
    with torch.no_grad():
        expected = layer(x)
        assert layer.merge() < 0.2
        error = (layer(x) - expected).norm() / expected.norm()
        layer.unmerge()
        assert torch.equal(layer(x), expected)
    assert error < 0.2


def test_second_merge_starts_from_the_original(make, randomise):
    layer = adapted(make(), randomise)
    layer.add_adapter("second", r=4, alpha=1)
    randomise(layer)
    twin = copy.deepcopy(layer)
    layer.merge(adapter_names=["default"])
    layer.merge(adapter_names=["second"])
    twin.merge(adapter_names=["default", "second"])
    assert same(state_of(layer.base_layer), state_of(twin.base_layer))


def test_keep_false_cannot_be_undone(make, randomise):
    layer = adapted(make(), randomise)
    layer.merge(keep=False)
    with pytest.raises(RuntimeError, match=r"^GraLoRAWrapper\.unmerge: the base weight was not"):
        layer.unmerge()


def test_state_of_a_merged_layer_is_the_originals(make, randomise):
    layer = adapted(make(), randomise)
    before = state_of(layer)
    layer.merge()
    merged = state_of(layer.base_layer)
    assert same(state_of(layer), before)
    assert same(state_of(layer.base_layer), merged)


def test_state_of_a_layer_merged_for_good_is_refused(make, randomise):
    layer = adapted(make(), randomise)
    layer.merge(keep=False)
    with pytest.raises(RuntimeError, match=r"^GraLoRAWrapper\.state_dict: .*twice"):
        nn.Sequential(layer).state_dict()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30], ids=str)
def test_safe_merge_of_a_broken_adapter_changes_nothing(make, randomise, bad):
    layer = adapted(make(), randomise)
    with torch.no_grad():
        layer.gralora_B["default"][0, 0, 0] = bad
        layer.gralora_A["default"].mul_(1e10)
    before = state_of(layer)
    with pytest.raises(ValueError, match=r"^GraLoRAWrapper\.merge: .*Inf or NaN"):
        layer.merge(safe_merge=True)
    assert same(state_of(layer), before)
    assert not layer.merged


def test_a_merge_that_fails_changes_nothing(make, randomise, monkeypatch):
    layer = adapted(make(), randomise)
    before = state_of(layer)

    def fail(*args, **kwargs):
        raise MemoryError

    codec = type(layer._codec())
    monkeypatch.setattr(codec, "quantise", fail)
    with pytest.raises(MemoryError):
        layer.merge()
    assert same(state_of(layer), before)
    assert not layer.merged


def test_copy_is_independent(make, x, randomise):
    layer = adapted(make(), randomise)
    expected = layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), expected)
    twin.merge()
    assert torch.equal(layer(x), expected)
    twin.unmerge()
    assert torch.equal(twin(x), expected)


def test_state_dict_round_trip(make, x, randomise):
    layer = adapted(make(), randomise)
    file = io.BytesIO()
    torch.save({k: v for k, v in layer.state_dict().items() if "ora_" in k}, file)
    file.seek(0)
    twin = GraLoRAWrapper(make(), r=8, k=2, alpha=1)
    twin.load_state_dict(torch.load(file), strict=False)
    assert torch.equal(twin(x), layer(x))


def test_compiled_layer_computes_the_same(make, x, randomise):
    layer = adapted(make(), randomise).eval()
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()


def test_linear_refuses_a_packed_weight():
    with pytest.raises(TypeError, match=r"^GraLoRALinear\.from_linear: .*GraLoRAWrapper takes"):
        GraLoRALinear.from_linear(torchao_int8(), r=8)


def test_layer_that_is_not_quantised_yet_cannot_be_merged_into():
    bnb = pytest.importorskip("bitsandbytes")
    for base, text in (
        (bnb.nn.Linear4bit(N, M), "none of its statistics"),
        (bnb.nn.Linear8bitLt(N, M, has_fp16_weights=False), "got torch.float32"),
    ):
        with pytest.raises(RuntimeError, match=f"^GraLoRAWrapper.merge: .*{text}"):
            GraLoRAWrapper(base, r=8).merge()


def test_other_weights_of_torchao_are_adapted_and_not_merged_into(x, randomise, dense_update):
    quantization = pytest.importorskip("torchao.quantization")
    base = nn.Linear(N, M)
    quantization.quantize_(base, quantization.Float8WeightOnlyConfig())
    layer = adapted(base, randomise)
    delta = torch.einsum("...c,oc->...o", x.detach(), dense_update(layer, "default", 1 / 8).float())
    torch.testing.assert_close(layer(x), base(x) + delta, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        RuntimeError, match=r"must be int8 .*got a Float8Tensor .*unquantised check"
    ):
        layer.merge()


@pytest.mark.parametrize("name", ["bnb-int8", "bnb-nf4", "bnb-fp4"])
def test_outputs_and_gradients_are_those_of_pefts_lora(name, x):
    """A grid of one block is LoRA."""
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": BASES[name]()})
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = "int8" in name, "int8" not in name
    config = LoraConfig(r=8, lora_alpha=4, target_modules=["layer"], init_lora_weights=False)
    theirs = get_peft_model(model, config).base_model.model["layer"]
    assert type(theirs).__module__ == "peft.tuners.lora.bnb"
    layer = GraLoRAWrapper(BASES[name](), r=8, k=1, alpha=4)
    with torch.no_grad():
        layer.gralora_A["default"][0] = theirs.lora_A["default"].weight.T
        layer.gralora_B["default"][0] = theirs.lora_B["default"].weight.T
    dy = torch.randn(2, 5, M)
    y = layer(x)
    torch.testing.assert_close(y, theirs(x), rtol=1e-4, atol=1e-4)
    y.backward(dy)
    other = x.detach().clone().requires_grad_()
    theirs(other).backward(dy)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)
    for ours, mine in ((layer.gralora_A, theirs.lora_A), (layer.gralora_B, theirs.lora_B)):
        expected = mine["default"].weight.grad.T
        torch.testing.assert_close(ours["default"].grad[0], expected, rtol=1e-4, atol=1e-4)
