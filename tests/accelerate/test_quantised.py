"""PEFT's layers over quantised base layers: the base's own forward, the adapter by an operator."""

from __future__ import annotations

import pytest
import torch
from accelerate_models import CONFIGS, gradients, layer_of, network, normal
from torch import nn

from gralora.integrations.peft import accelerate, report, restore

BITSANDBYTES = {"4-bit": "Linear4bit", "8-bit": "Linear8bitLt"}
INT8 = ("Int8WeightOnlyConfig", {})
INT4 = (
    "Int4WeightOnlyConfig",
    {"group_size": 128, "int4_packing_format": "tile_packed_to_4d", "set_inductor_config": False},
)


def quantised(bits):
    """One of bitsandbytes' layers, to be quantised where it is moved."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if bits == "4-bit":
        return bitsandbytes.nn.Linear4bit(64, 32, quant_type="nf4", compute_dtype=torch.float32)
    return bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", BITSANDBYTES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_bitsandbytes(kind, bits, monkeypatch):
    base = quantised(bits).to("cpu")
    # PEFT reads from the model how it was loaded.
    monkeypatch.setattr(nn.Sequential, "is_loaded_in_4bit", bits == "4-bit", raising=False)
    monkeypatch.setattr(nn.Sequential, "is_loaded_in_8bit", bits == "8-bit", raising=False)
    model = network(CONFIGS[kind], base)
    peft_class = type(layer_of(model))
    x = normal(5, 64)
    expected = model(x)
    expected.sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    (row,) = report(accelerate(model))
    assert (row.way, row.reason) == ("beside", f"base layer is a {BITSANDBYTES[bits]}")
    assert isinstance(layer_of(model), peft_class)
    assert type(layer_of(model)).__name__ == peft_class.__name__
    found = model(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert before
    for name, parameter in model.named_parameters():
        if name in before:
            torch.testing.assert_close(parameter.grad, before[name], rtol=1e-4, atol=1e-4)
    assert type(layer_of(restore(model))) is peft_class


def torchao_network(kind, config, base):
    """A network over a base that torchao quantises by a configuration of that name and options."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    name, options = config
    quantization.quantize_(base, getattr(quantization, name)(**options))
    model = network(CONFIGS[kind], base, dtype=base.bias.dtype)
    if kind == "lora" and type(layer_of(model)).__name__ != "TorchaoLoraLinear":
        pytest.skip("this PEFT does not take this torchao")
    return model


def output_and_gradients(model, x):
    """Output, gradient of the input and those of the parameters."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.float().square().mean().backward()
    return y.detach(), x.grad, gradients(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONFIGS)
def test_torchao(kind):
    model = torchao_network(kind, INT8, nn.Linear(64, 32))
    peft_class, x = type(layer_of(model)), normal(5, 64)
    expected = output_and_gradients(model, x)
    (row,) = report(accelerate(model))
    assert row.way == "beside"
    found = output_and_gradients(model, x)
    assert expected[2].keys() == found[2].keys() != set()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert type(layer_of(restore(model))) is peft_class


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torchao's int4 needs a GPU")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONFIGS)
def test_torchao_int4(kind):
    base = nn.Linear(512, 256, dtype=torch.bfloat16, device="cuda")
    model = torchao_network(kind, INT4, base)
    x = normal(5, 512, dtype=torch.bfloat16).cuda()
    with torch.no_grad():
        expected = model(x)
        (row,) = report(accelerate(model))
        assert row.way == "beside"
        torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.05)
        if kind == "gralora":
            with pytest.raises(RuntimeError, match="must be int8 to be merged into, got a Int4"):
                model.merge_adapter()
            torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.05)
