"""Granular low-rank adapters (GraLoRA) for PyTorch as compiled operators.

A frozen linear layer gets an update cut into a grid of blocks, each a low-rank product of its own
(GraLoRA, arXiv 2505.20355); a 1 x 1 grid is LoRA.

- A whole model: :class:`GraLoRAConfig` and :func:`inject`; :func:`set_adapter`,
  :func:`enable_adapters` and :func:`delete_adapter` among several; :func:`share_inputs`;
  :func:`merge_and_unload`.
- Adapters on disk, in PEFT's format: :func:`save_adapter`, :func:`load_adapter`,
  :func:`adapter_state_dict`, :func:`load_adapter_state_dict`.
- Without a model in memory: :func:`merge_checkpoint` into one on disk, :func:`export_lora` as plain
  LoRA; :mod:`gralora.adapters` has more of these.
- One layer: :class:`gralora.nn.GraLoRALinear`; :mod:`gralora.functional` has the same as plain
  functions.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# What few programs need is imported when it is asked for.
_LATE = {
    "export_lora": "gralora.adapters.export_lora",
    "merge_checkpoint": "gralora.checkpoints.merge",
}


def _is_command() -> bool:
    """Whether this process is the ``gralora`` command, whose help needs no torch."""
    # Programs that embed Python may have no arguments.
    arguments = getattr(sys, "argv", None) or [""]
    if arguments[0] == "-m" and len(sys.orig_argv) >= len(arguments):
        # The name of a module that Python is told to run stands before that module's arguments.
        return sys.orig_argv[-len(arguments)].removeprefix("-m") == __name__
    return Path(arguments[0]).name == __name__


if TYPE_CHECKING or not _is_command():
    from gralora._api import (
        GraLoRAConfig,
        __version__,
        adapter_state_dict,
        delete_adapter,
        enable_adapters,
        functional,
        inject,
        load_adapter,
        load_adapter_state_dict,
        merge_and_unload,
        nn,
        save_adapter,
        set_adapter,
        share_inputs,
    )

if TYPE_CHECKING:
    from gralora.adapters.export_lora import export_lora
    from gralora.checkpoints.merge import merge_checkpoint
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_LATE.get(name, "gralora._api")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "GraLoRAConfig",
    "__version__",
    "adapter_state_dict",
    "delete_adapter",
    "enable_adapters",
    "export_lora",
    "functional",
    "inject",
    "load_adapter",
    "load_adapter_state_dict",
    "merge_and_unload",
    "merge_checkpoint",
    "nn",
    "save_adapter",
    "set_adapter",
    "share_inputs",
]
