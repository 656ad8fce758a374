"""Granular low-rank adapters (GraLoRA) for PyTorch as compiled operators.

A frozen linear layer gets an update cut into a grid of blocks, each a low-rank product of its own
(GraLoRA, arXiv 2505.20355); a 1 x 1 grid is LoRA. Start with :class:`gralora.nn.GraLoRALinear`;
:mod:`gralora.functional` has the same as plain functions.
"""

from gralora._extension import build_info, load

load()

from gralora import functional, nn  # noqa: E402  (needs the operators that load() registers)

__version__: str = build_info.VERSION
__all__ = ["__version__", "functional", "nn"]
