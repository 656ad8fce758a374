"""torch's encoder layers, whose fused inference path would pass adapters by."""

from __future__ import annotations

import pytest
import torch
from injection_models import randomise
from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.filterwarnings("ignore:inject")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True], ids=["dense", "padded"])
def test_adapters_act_in_evaluation(padded):
    model = randomise(inject(encoder(), GraLoRAConfig(r=4, target_modules=["linear1", "linear2"])))
    x = torch.randn(3, 5, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 3:] = padded
    expected = model.train()(x, src_key_padding_mask=padding)
    model.eval()
    with torch.inference_mode():
        actual = model(x, src_key_padding_mask=padding)
    kept = ~padding
    torch.testing.assert_close(actual[kept], expected[kept])
    base = encoder()(x, src_key_padding_mask=padding)
    assert not torch.allclose(actual[kept], base[kept], atol=1e-2)


def test_encoder_without_adapted_layers_keeps_its_fused_path():
    model = nn.ModuleDict({"encoder": encoder(), "head": nn.Linear(16, 16)})
    inject(model, GraLoRAConfig(r=4, target_modules=["head"]))
    assert model.encoder.layers[0].activation_relu_or_gelu == 1
    assert model.encoder.use_nested_tensor
