"""Merges in a process of its own and prints as JSON by how much its peak of memory grew.

Arguments: base, adapter, output, dtype or "keep".
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.checkpoints.merge import merge_checkpoint
from gralora.nn.spec import make_spec


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _warm_up() -> None:
    """Merge a tiny model first, so that libraries have the memory of their own that they keep."""
    spec = make_spec(8, 8, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.zeros(2, 4, 4), torch.zeros(2, 4, 4))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        base.mkdir()
        save_file({"up.weight": torch.zeros(8, 8).bfloat16()}, base / "model.safetensors")
        write_adapter(Path(folder, "adapter"), {"up": layer})
        merge_checkpoint(base, Path(folder, "adapter"), Path(folder, "out"), layout="linear")


def main() -> None:
    base, adapter, out, dtype = sys.argv[1:]
    torch.set_num_threads(1)
    _warm_up()
    before = _peak()
    merge_checkpoint(base, adapter, out, dtype=None if dtype == "keep" else getattr(torch, dtype))
    print(json.dumps({"before": before, "growth": _peak() - before}))


if __name__ == "__main__":
    main()
