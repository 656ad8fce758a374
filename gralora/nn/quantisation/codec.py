"""What a quantised weight can do, whichever library made it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Codec(ABC):
    """Reads, writes and computes the states of one kind of quantised weight.

    A state is everything that makes up a quantised weight; its kind is the codec's own business.
    Methods change no state that they are given.
    """

    @abstractmethod
    def why_not(self, module: nn.Module) -> str | None:
        """Why adapters cannot be merged into a module, or None where they can."""

    @abstractmethod
    def read(self, module: nn.Module) -> Any:
        """State of a module, with its very tensors."""

    @abstractmethod
    def install(self, module: nn.Module, state: Any) -> None:
        """Let a module have a state, with its very tensors."""

    @abstractmethod
    def moved(self, state: Any, device: torch.device) -> Any:
        """State on a device; the same where it is there already."""

    @abstractmethod
    def dequantise(self, state: Any, module: nn.Module) -> Tensor:
        """The weight ``[M, N]`` that `module` computes with in a state: new, in float32."""

    @abstractmethod
    def quantise(self, weight: Tensor, module: nn.Module) -> Any:
        """State of a float32 weight ``[M, N]`` with the settings that `module` has now."""
