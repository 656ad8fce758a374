"""Granular low-rank adapters (GraLoRA) for PyTorch as compiled operators.

A frozen linear layer gets an update cut into a grid of blocks, each a low-rank product of its own
(GraLoRA, arXiv 2505.20355); a 1 x 1 grid is LoRA.

- A whole model: :class:`GraLoRAConfig` and :func:`inject`; :func:`set_adapter`,
  :func:`enable_adapters` and :func:`delete_adapter` among several; :func:`merge_and_unload`.
- Adapters on disk, in PEFT's format: :func:`save_adapter`, :func:`load_adapter`,
  :func:`adapter_state_dict`, :func:`load_adapter_state_dict`.
- One layer: :class:`gralora.nn.GraLoRALinear`; :mod:`gralora.functional` has the same as plain
  functions.
"""

from gralora._extension import build_info, load

load()

# Below load(), because all of these need the operators that it registers.
from gralora import functional, nn  # noqa: E402
from gralora.config import GraLoRAConfig  # noqa: E402
from gralora.injection.inject import inject  # noqa: E402
from gralora.injection.merging import merge_and_unload  # noqa: E402
from gralora.injection.switching import (  # noqa: E402
    delete_adapter,
    enable_adapters,
    set_adapter,
)
from gralora.storage.adapter_files import load_adapter, save_adapter  # noqa: E402
from gralora.storage.state_dict import (  # noqa: E402
    adapter_state_dict,
    load_adapter_state_dict,
)

__version__: str = build_info.VERSION
__all__ = [
    "GraLoRAConfig",
    "__version__",
    "adapter_state_dict",
    "delete_adapter",
    "enable_adapters",
    "functional",
    "inject",
    "load_adapter",
    "load_adapter_state_dict",
    "merge_and_unload",
    "nn",
    "save_adapter",
    "set_adapter",
]
