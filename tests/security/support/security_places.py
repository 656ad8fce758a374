"""Every kind of file that the product reads from others, in one folder, of which some are changed.

=========== ==========================================================================
``plain``   PEFT's GraLoRA with a module that was saved whole
``hybrid``  the extension of the format: a plain part, and patterns of ranks and grids
``fork``    of the method's authors
``lora``    a LoRA with a pattern of ranks, trained biases and a module saved whole
``other``   PEFT's GraLoRA, factors alone
``fused``   the extension of the format: adapters of fused experts beside a layer's
``experts`` a LoRA of fused experts
``base``    a model in two shards
=========== ==========================================================================
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from security_checks import tree
from security_files import (
    CONFIG,
    FACTORS,
    LAYERS,
    NORM,
    PREFIX,
    SHARDS,
    TENSORS,
    WIDTH,
    Shapes,
    adapter_config,
    header_of,
    numbers,
    write_adapter,
    write_base,
    write_safetensors,
)

OUT = "out"
ADAPTERS = ("plain", "hybrid", "fork")
# Where an index or a link might lead to.
SECRET = "secret.json"


class Place:
    """The folder: what it holds at first, and what of it is changed now."""

    def __init__(self, root: Path) -> None:
        self.root = root / "place"
        self.root.mkdir()
        write_adapter(self.root / "plain")
        _write(self.root / "hybrid", HYBRID_CONFIG, HYBRID_SHAPES)
        _write(self.root / "fork", FORK_CONFIG, _factors())
        _write(self.root / "lora", LORA_CONFIG, LORA_SHAPES)
        _write(self.root / "other", adapter_config(modules_to_save=None), _factors())
        _write(self.root / "fused", FUSED_CONFIG, FUSED_SHAPES)
        _write(self.root / "experts", EXPERTS_CONFIG, EXPERTS_SHAPES)
        base = write_base(self.root / "base")
        (base / "tokenizer.json").write_text("{}")
        for shard in SHARDS:
            shutil.copy(base / shard, self.root / shard)
        (self.root / SECRET).write_text("{}")
        shutil.copytree(self.root, root / "pristine")
        # What lies above the folder must not change either.
        self.above = root
        self._originals = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self._present = set(root.rglob("*"))
        self._changed: set[Path] = set()

    def pristine(self, adapter: str) -> Path:
        """A copy of an adapter that is never changed."""
        return self.above / "pristine" / adapter

    def original(self, name: str) -> bytes:
        """What a file had at first, by its path in the folder."""
        return self._originals[self.root / name]

    def change(self, contents: dict[str, bytes]) -> None:
        """Let these files have other contents, all others their own, and no other be there."""
        # What a failure left, which is not that of the next input.
        for path in set(self.above.rglob("*")) - self._present:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in self._changed:
            path.write_bytes(self._originals[path])
        self._changed = {self.root / name for name in contents}
        for name, content in contents.items():
            (self.root / name).write_bytes(content)

    def listing(self) -> dict[str, tuple[object, ...]]:
        """Everything there and above, with contents."""
        return tree(self.above)


def _write(folder: Path, config: dict[str, Any], shapes: Shapes) -> None:
    folder.mkdir()
    header = header_of(shapes)
    write_safetensors(folder / TENSORS, header, numbers(header, seed=1))
    (folder / CONFIG).write_text(json.dumps(config))


def _factors() -> Shapes:
    return {PREFIX + layer + factor: shape for layer in LAYERS for factor, shape in FACTORS.items()}


# k=2, r=4 and r0=2 in the first layer; k=(4, 2) and r=8, so s=4, in the second.
HYBRID_CONFIG = adapter_config(
    peft_type="GRALORA_EXT",
    hybrid_r=2,
    modules_to_save=None,
    use_rslora=True,
    rank_pattern={LAYERS[1]: 8},
    alpha_pattern={LAYERS[1]: 3.5},
    k_pattern={LAYERS[1]: [4, 2]},
)
HYBRID_SHAPES: Shapes = {
    f"{PREFIX}{LAYERS[0]}.gralora_A": [2, 4, 4],
    f"{PREFIX}{LAYERS[0]}.gralora_B": [2, 4, 4],
    f"{PREFIX}{LAYERS[1]}.gralora_A": [2, 4, 16],
    f"{PREFIX}{LAYERS[1]}.gralora_B": [4, 8, 2],
    **{f"{PREFIX}{layer}.gralora_A_general.weight": [2, WIDTH] for layer in LAYERS},
    **{f"{PREFIX}{layer}.gralora_B_general.weight": [WIDTH, 2] for layer in LAYERS},
}
FORK_CONFIG = {
    name: value
    for name, value in adapter_config(gralora_alpha=8, modules_to_save=None).items()
    if name != "alpha"
}
LORA_CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up"],
    "rank_pattern": {LAYERS[1]: 3}, "alpha_pattern": {LAYERS[1]: 5}, "bias": "lora_only",
    "modules_to_save": ["norm"], "use_rslora": False, "lora_dropout": 0.0,
    "init_lora_weights": True, "fan_in_fan_out": False, "task_type": None,
    "base_model_name_or_path": "tiny",
}  # fmt: skip
LORA_SHAPES: Shapes = {
    **{f"{PREFIX}{layer}.lora_A.weight": [2 + i, WIDTH] for i, layer in enumerate(LAYERS)},
    **{f"{PREFIX}{layer}.lora_B.weight": [WIDTH, 2 + i] for i, layer in enumerate(LAYERS)},
    **{f"{PREFIX}{layer}.base_layer.bias": [WIDTH] for layer in LAYERS},
    **{PREFIX + name: shape for name, shape in NORM.items()},
}
# Three experts, and a layer.
FUSED_CONFIG = adapter_config(
    peft_type="GRALORA_EXT",
    modules_to_save=None,
    target_modules=[LAYERS[0]],
    target_parameters=["moe.experts.down_proj"],
)
FUSED_SHAPES: Shapes = {
    **{f"{PREFIX}{LAYERS[0]}{factor}": shape for factor, shape in FACTORS.items()},
    **{f"{PREFIX}moe.experts.down_proj{f}": [3, *shape] for f, shape in FACTORS.items()},
}
# Two experts of rank 2, 8 wide and 4 wide within.
EXPERTS_CONFIG: dict[str, Any] = {
    **{name: LORA_CONFIG[name] for name in ("peft_type", "r", "lora_alpha", "init_lora_weights")},
    "target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}  # fmt: skip
EXPERTS_SHAPES: Shapes = {
    f"{PREFIX}moe.experts.base_layer.lora_A.weight": [4, 8],
    f"{PREFIX}moe.experts.base_layer.lora_B.weight": [8, 4],
    f"{PREFIX}moe.experts.lora_A.weight": [4, 4],
    f"{PREFIX}moe.experts.lora_B.weight": [8, 4],
}
