"""Adapters on disk as things of their own: read, written and changed without a model.

- :func:`read_adapter` and :func:`write_adapter`: an adapter as the factors of its layers.
- :func:`export_lora` and :func:`import_lora`: to plain LoRA and back, exactly.
- :func:`combine`: the weighted sum of several as one.
- :func:`inspect_adapter`, :func:`save_heatmap`: norms, effective ranks and blocks of each layer.
- :func:`convert`: from the format of the authors' fork to PEFT's.
- :func:`load_into`: another adapter's numbers under a model that runs.
"""

from gralora.adapters.combine import Combined, combine
from gralora.adapters.convert import Converted, convert
from gralora.adapters.export_lora import LoraExport, export_lora
from gralora.adapters.heatmap import save_heatmap
from gralora.adapters.import_lora import LoraImport, import_lora
from gralora.adapters.inspection import AdapterReport, LayerReport, inspect_adapter
from gralora.adapters.stored import StoredAdapter, StoredExperts, StoredLayer, read_adapter
from gralora.adapters.swapping import load_into
from gralora.adapters.write import write_adapter

__all__ = [
    "AdapterReport",
    "Combined",
    "Converted",
    "LayerReport",
    "LoraExport",
    "LoraImport",
    "StoredAdapter",
    "StoredExperts",
    "StoredLayer",
    "combine",
    "convert",
    "export_lora",
    "import_lora",
    "inspect_adapter",
    "load_into",
    "read_adapter",
    "save_heatmap",
    "write_adapter",
]
