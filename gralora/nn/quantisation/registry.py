"""Which codec a module's weight needs; the libraries' own are imported when one is met."""

from __future__ import annotations

from torch import nn

from gralora.nn.quantisation.codec import Codec


def codec_of(module: nn.Module) -> Codec | None:
    """What merges into a module, or None where its weight is not quantised by a known library."""
    if _is_from(module, "bitsandbytes", "Linear4bit", "Linear8bitLt"):
        from gralora.nn.quantisation.bitsandbytes import EightBit, FourBit

        names = {kind.__name__ for kind in type(module).__mro__}
        return FourBit() if "Linear4bit" in names else EightBit()
    weight = getattr(module, "weight", None)
    if weight is not None and type(weight).__module__.partition(".")[0] == "torchao":
        from gralora.nn.quantisation.torchao import TorchAO

        return TorchAO()
    return None


def _is_from(module: nn.Module, package: str, *names: str) -> bool:
    return any(
        kind.__name__ in names and kind.__module__.partition(".")[0] == package
        for kind in type(module).__mro__
    )
