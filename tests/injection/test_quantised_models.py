"""Whole models with layers of bitsandbytes and torchao: injected, trained, saved and merged."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from injection_models import PROJECTIONS, VOCABULARY, randomise, tokens, trainable
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import gralora
from gralora import GraLoRAConfig, inject
from gralora.nn import GraLoRAWrapper


def llama():
    """As wide as the blocks of 4-bit weights are long; in training mode.

    In evaluation bitsandbytes rounds and packs 4-bit weights anew on some processors.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def quantised(kind):
    """The small Llama with every projection quantised; the head and embeddings are not."""
    model = llama()
    if kind == "torchao-int8":
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(
            model,
            quantization.Int8WeightOnlyConfig(),
            filter_fn=lambda module, name: name.endswith("_proj"),
        )
        return model
    bnb = pytest.importorskip("bitsandbytes")
    for name, module in list(model.named_modules()):
        if not name.endswith(PROJECTIONS):
            continue
        sizes = (module.in_features, module.out_features, False)
        weight = module.weight.detach().clone()
        if kind == "bnb-int8":
            layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            layer = bnb.nn.Linear4bit(*sizes, quant_type="nf4", compute_dtype=torch.float32)
            layer.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, quant_type="nf4", module=layer
            )
        model.set_submodule(name, layer.to("cpu"))
    return model


@pytest.fixture(params=["bnb-int8", "bnb-nf4", "torchao-int8"])
def make(request):
    """Makes a quantised model, the same at every call."""
    return lambda: quantised(request.param)


def test_every_projection_is_wrapped_and_a_fresh_adapter_changes_nothing(make):
    expected = make()(tokens()).logits
    model = inject(make(), GraLoRAConfig(r=4))
    wrapped = {n for n, module in model.named_modules() if isinstance(module, GraLoRAWrapper)}
    assert len(wrapped) == 2 * len(PROJECTIONS)
    assert torch.equal(model(tokens()).logits, expected)


def test_a_step_trains_the_adapter_alone(make):
    model = inject(make(), GraLoRAConfig(r=4))
    assert {name.split(".")[-2] for name in trainable(model)} == {"gralora_A", "gralora_B"}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model(tokens(), labels=tokens()).loss
    before.backward()
    optimiser.step()
    assert model(tokens(), labels=tokens()).loss < before


def test_saved_adapter_comes_back(make, tmp_path):
    model = randomise(inject(make(), GraLoRAConfig(r=4, hybrid_r=2)))
    gralora.save_adapter(model, tmp_path)
    again = gralora.load_adapter(make(), tmp_path)
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_peft_loads_what_is_saved_over_the_same_base(make, tmp_path):
    peft = pytest.importorskip("peft")
    model = randomise(inject(make(), GraLoRAConfig(r=4)))
    gralora.save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).train()
    ours = model(tokens()).logits
    torch.testing.assert_close(theirs(tokens()).logits, ours, rtol=1e-4, atol=1e-4)


def test_merged_model_is_quantised_again_and_says_the_error(make):
    model = randomise(inject(make(), GraLoRAConfig(r=4, alpha=0.2)))
    expected = model(tokens()).logits
    message = r"^merge_and_unload: 14 quantised weights .* by up to [0-9.e-]+ of .*_proj\)"
    with pytest.warns(UserWarning, match=message):
        merged = gralora.merge_and_unload(model)
    assert not any(isinstance(module, GraLoRAWrapper) for module in merged.modules())
    kinds = [type(module) for module in make().modules()]
    assert [type(module) for module in merged.modules()] == kinds
    logits = merged(tokens()).logits
    base = make()(tokens()).logits
    assert (logits - expected).norm() < 0.5 * (base - expected).norm()


def test_switching_adapters_off_gives_the_base(make):
    model = randomise(inject(make(), GraLoRAConfig(r=4)))
    gralora.enable_adapters(model, False)
    assert torch.equal(model(tokens()).logits, make()(tokens()).logits)


def test_kind_of_torchao_that_cannot_be_merged_changes_nothing():
    quantization = pytest.importorskip("torchao.quantization")
    model = llama().eval()
    quantization.quantize_(
        model,
        quantization.Float8WeightOnlyConfig(),
        filter_fn=lambda module, name: name.endswith("layers.1.mlp.down_proj"),
    )
    randomise(inject(model, GraLoRAConfig(r=4)))
    expected = model(tokens()).logits
    with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.down_proj: .*unquantised checkpoint"):
        gralora.merge_and_unload(model)
    assert torch.equal(model(tokens()).logits, expected)


def test_quantising_libraries_are_imported_only_where_they_are_met():
    code = (
        "import sys, torch, gralora\n"
        "model = torch.nn.Sequential(torch.nn.Linear(8, 8))\n"
        "gralora.inject(model, gralora.GraLoRAConfig(r=4, layers_pattern=None))\n"
        "gralora.merge_and_unload(model)\n"
        "met = {'bitsandbytes', 'torchao', 'transformers'} & set(sys.modules)\n"
        "assert not met, met\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=120)


def test_int4_of_torchao_is_adapted_on_a_gpu():
    quantization = pytest.importorskip("torchao.quantization")
    if not torch.cuda.is_available():
        pytest.skip("torchao's int4 needs a GPU")
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(512, 256, dtype=torch.bfloat16)}).cuda()
    config = quantization.Int4WeightOnlyConfig(
        group_size=128, int4_packing_format="tile_packed_to_4d"
    )
    quantization.quantize_(model, config)
    x = torch.randn(64, 512, dtype=torch.bfloat16, device="cuda")
    base = model["layer"](x)
    layer = randomise(inject(model, GraLoRAConfig(r=8)))["layer"]
    expected = base.double() + x.double() @ layer.delta_weight().double().T
    error = (layer(x).double() - expected).norm() / expected.norm()
    assert error < 0.01
    with pytest.raises(RuntimeError, match="merge the adapter into the unquantised checkpoint"):
        gralora.merge_and_unload(model)
