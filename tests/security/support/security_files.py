"""An adapter and a sharded base model on disk, written byte by byte without the product.

Each file is made of what a test may change: the header as a tree, the bytes behind it, the config.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("a.safetensors", "b.safetensors")
PREFIX = "base_model.model."
WIDTH = 8
LAYERS = ("layers.0.up", "layers.1.up")
# Of the config's rank 4 and grid of 2 by 2 for a layer of 8 by 8.
FACTORS = {".gralora_A": [2, 4, 4], ".gralora_B": [2, 4, 4]}
NORM = {"norm.weight": [WIDTH], "norm.bias": [WIDTH]}

Shapes = dict[str, list[int]]
Header = dict[str, Any]


class Block(nn.Module):
    """A layer of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)


class Tiny(nn.Module):
    """The model that the files belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in LAYERS])
        self.norm = nn.LayerNorm(WIDTH)


def header_of(shapes: Shapes) -> Header:
    """The header of float32 tensors that lie one behind the other."""
    header: Header = {}
    position = 0
    for name, shape in shapes.items():
        end = position + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    return header


def numbers(header: Header, seed: int = 0) -> bytes:
    """Float32 numbers for a header's tensors."""
    count = max(entry["data_offsets"][1] for entry in header.values()) // 4
    chance = random.Random(seed)
    return struct.pack(f"<{count}f", *(chance.uniform(-0.5, 0.5) for _ in range(count)))


def write_safetensors(
    path: Path, header: Header | str | bytes, data: bytes, *, claimed: int | None = None
) -> None:
    """Write a safetensors file.

    Args:
        path: of the file.
        header: as a tree, or as what is to stand there.
        data: what follows it.
        claimed: length that the file says its header has; None tells the truth.

    """
    if isinstance(header, dict):
        header = json.dumps(header)
    blob = header.encode() if isinstance(header, str) else header
    length = len(blob) if claimed is None else claimed
    path.write_bytes(struct.pack("<Q", length) + blob + data)


def adapter_header() -> Header:
    """Two adapted layers and a module that is saved whole."""
    shapes = {PREFIX + layer + factor: s for layer in LAYERS for factor, s in FACTORS.items()}
    return header_of({**shapes, **{PREFIX + name: shape for name, shape in NORM.items()}})


def adapter_config(**changes: Any) -> dict[str, Any]:
    """The adapter's config as PEFT would write it."""
    return {
        "alpha": 8, "base_model_name_or_path": "tiny", "bias": "none", "fan_in_fan_out": False,
        "gralora_dropout": 0.0, "gralora_k": 2, "hybrid_r": 0, "inference_mode": True,
        "init_weights": True, "layers_pattern": None, "layers_to_transform": None,
        "modules_to_save": ["norm"], "peft_type": "GRALORA", "r": 4, "target_modules": ["up"],
        "task_type": None, **changes,
    }  # fmt: skip


def write_adapter(folder: Path, **changes: Any) -> Path:
    """The valid adapter, with changes to its config; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    header = adapter_header()
    write_safetensors(folder / TENSORS, header, numbers(header))
    (folder / CONFIG).write_text(json.dumps(adapter_config(**changes)))
    return folder


def shard_headers() -> dict[str, Header]:
    """By the shard's name: a layer each, the norm in the second."""
    shapes: list[Shapes] = [
        {f"{layer}.weight": [WIDTH, WIDTH], f"{layer}.bias": [WIDTH]} for layer in LAYERS
    ]
    shapes[1] |= NORM
    return {name: header_of(part) for name, part in zip(SHARDS, shapes, strict=True)}


def write_base(folder: Path) -> Path:
    """The valid base model in two shards; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    homes = {}
    for seed, (name, header) in enumerate(shard_headers().items()):
        write_safetensors(folder / name, header, numbers(header, seed))
        homes |= dict.fromkeys(header, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "tie_word_embeddings": False})
    )
    return folder
