"""PEFT's layers over quantised base layers: the base's own forward, the adapter by an operator."""

from __future__ import annotations

import pytest
import torch
from accelerate_models import CONFIGS, layer_of, lora, network, normal
from torch import nn

from gralora.integrations.peft import accelerate, report, restore

BITSANDBYTES = {"4-bit": "Linear4bit", "8-bit": "Linear8bitLt"}


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


@pytest.mark.filterwarnings("ignore")
def test_torchao():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    base = nn.Sequential()
    base.add_module("layer", nn.Linear(64, 32))
    quantization.quantize_(base, quantization.Int8WeightOnlyConfig())
    theirs = network(lora, base.layer)
    if type(layer_of(theirs)).__name__ != "TorchaoLoraLinear":
        pytest.skip("this PEFT does not take this torchao")
    x = normal(5, 64)
    expected = theirs(x)
    (row,) = report(accelerate(theirs))
    assert row.way == "beside"
    torch.testing.assert_close(theirs(x), expected)
