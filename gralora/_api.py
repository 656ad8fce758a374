"""What ``import gralora`` gives, once the operators are registered."""

from gralora._extension import build_info, load

load()

# Below load(), because all of these need the operators that it registers.
import gralora.functional as functional  # noqa: E402
import gralora.nn as nn  # noqa: E402
from gralora.config import GraLoRAConfig  # noqa: E402
from gralora.injection.inject import inject  # noqa: E402
from gralora.injection.merging import merge_and_unload  # noqa: E402
from gralora.injection.shared_inputs import share_inputs  # noqa: E402
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
    "share_inputs",
]
