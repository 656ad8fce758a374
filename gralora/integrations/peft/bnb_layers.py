"""PEFT's LoRA over bitsandbytes' layers with the accelerated forward."""

from __future__ import annotations

from peft.tuners.lora import bnb

from gralora.integrations.peft.lora_layer import AcceleratedLora


class Linear8bitLt(AcceleratedLora, bnb.Linear8bitLt):
    """``peft.tuners.lora.bnb.Linear8bitLt``, under the same name."""


class Linear4bit(AcceleratedLora, bnb.Linear4bit):
    """``peft.tuners.lora.bnb.Linear4bit``, under the same name."""
