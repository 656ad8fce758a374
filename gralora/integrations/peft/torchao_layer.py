"""PEFT's LoRA over torchao's quantised weights with the accelerated forward."""

from __future__ import annotations

from peft.tuners.lora.torchao import TorchaoLoraLinear as PeftTorchaoLoraLinear

from gralora.integrations.peft.lora_layer import AcceleratedLora


class TorchaoLoraLinear(AcceleratedLora, PeftTorchaoLoraLinear):
    """``peft.tuners.lora.torchao.TorchaoLoraLinear``, under the same name."""
