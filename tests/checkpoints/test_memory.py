"""How much memory a merge takes: some tensors, not a shard and not the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints_on_disk import shards
from safetensors.torch import save_file

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.nn.spec import make_spec

WIDTH, LAYERS_PER_SHARD, SHARDS = 2048, 16, 2
SUPPORT = Path(__file__).parent / "support"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base of two shards of 128 MiB, each of sixteen square layers of bfloat16, all adapted."""
    root = tmp_path_factory.mktemp("large")
    base = root / "base"
    base.mkdir()
    homes = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        keys = [f"layers.{shard * LAYERS_PER_SHARD + i}.up.weight" for i in range(LAYERS_PER_SHARD)]
        weight = torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16)
        save_file({key: weight.clone() for key in keys}, base / name, metadata={"format": "pt"})
        homes |= dict.fromkeys(keys, name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    (base / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    spec = make_spec(WIDTH, WIDTH, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, WIDTH // 2, 4), torch.randn(2, 4, WIDTH // 2))
    write_adapter(root / "adapter", {key.removesuffix(".weight"): layer for key in homes})
    yield root
    shutil.rmtree(root)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives the peak in kilobytes")
@pytest.mark.parametrize("dtype", ["keep", "float32"])
def test_the_peak_of_memory_grows_by_less_than_a_shard(dtype: str, inputs: Path) -> None:
    command = [
        sys.executable, SUPPORT / "checkpoints_memory.py", inputs / "base", inputs / "adapter",
        inputs / dtype, dtype,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    growth = json.loads(result.stdout)["growth"]
    assert growth < min(path.stat().st_size for path in shards(inputs / "base"))
