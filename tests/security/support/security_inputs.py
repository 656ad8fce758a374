"""One input of a fuzzed entry: which files are others, and what they hold."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from hypothesis import strategies as st
from security_changes import split
from security_files import INDEX, SHARDS
from security_mutations import (
    NAMES,
    VALUES,
    changed_bytes,
    changed_numbers,
    changed_tree,
    safetensors,
)
from security_places import Place

_FLOATS = [0.0, -0.0, math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 1e30, 65504.0, 1e-8]
_MOST_FLOATS = 4
# Ways to the same shard above the base and in it.
PLACES = ["../", "../base/", "./", "../plain/../"]


@st.composite
def changed_files(draw: st.DrawFn, place: Place, names: list[str]) -> dict[str, bytes]:
    """One or two of these files with other contents."""
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    return {name: draw(changed_file(name, place.original(name))) for name in chosen}


@st.composite
def changed_file(draw: st.DrawFn, name: str, original: bytes) -> bytes:
    """Another content of a JSON or safetensors file, near to what it has."""
    if name.endswith(INDEX) and draw(st.booleans()):
        return draw(moved(original))
    if name.endswith(".json"):
        kind = draw(st.sampled_from(["tree", "tree", "tree", "bytes", "any"]))
        if kind == "tree":
            return draw(changed_tree(json.loads(original))).encode()
        if kind == "any":
            return json.dumps(draw(st.dictionaries(st.text(max_size=8), VALUES))).encode()
        return draw(changed_bytes(original))
    kind = draw(st.sampled_from(["header", "numbers", "numbers", "data", "bytes"]))
    if kind == "bytes":
        return draw(changed_bytes(original))
    header, data = split(original)
    if kind == "data":
        return safetensors(json.dumps(header), draw(changed_data(data)))
    if kind == "header":
        return safetensors(draw(changed_tree(header)), data)
    return _with_numbers(draw(changed_numbers(header)), data)


@st.composite
def moved(draw: st.DrawFn, index: bytes) -> bytes:
    """An index that has all tensors of a shard in a file of another name."""
    shard = draw(st.sampled_from(SHARDS))
    name = draw(st.one_of(*(st.just(place + shard) for place in PLACES), NAMES))
    content = json.loads(index)
    for key, home in content["weight_map"].items():
        if home == shard:
            content["weight_map"][key] = name
    return json.dumps(content).encode()


def _with_numbers(header: str, data: bytes) -> bytes:
    """With bytes enough for a header that may be right."""
    ends = [entry["data_offsets"][1] for entry in json.loads(header).values()]
    if 0 < max(ends) <= 2 * len(data):
        data = (data * 2)[: max(ends)]
    return safetensors(header, data)


@st.composite
def changed_data(draw: st.DrawFn, data: bytes) -> bytes:
    """Some float32 numbers replaced by others."""
    result = bytearray(data)
    value = st.one_of(st.sampled_from(_FLOATS), st.floats(width=32))
    for _ in range(draw(st.integers(1, _MOST_FLOATS))):
        place = 4 * draw(st.integers(0, len(data) // 4 - 1))
        result[place : place + 4] = struct.pack("<f", draw(value))
    return bytes(result)


@st.composite
def resized(draw: st.DrawFn, config: dict[str, Any], width: int, prefix: str) -> dict[str, bytes]:
    """Config and tensors of an adapter that agree with each other, of any rank and grid."""
    k = draw(st.sampled_from([1, 2, 4, 8]))
    s = draw(st.sampled_from([1, 2, 3, 16]))
    hybrid_r = draw(st.sampled_from([0, 1, 9]))
    alpha = draw(st.one_of(st.integers(-3, 300), st.floats(-1e30, 1e30)))
    shapes = {".gralora_A": [k, width // k, k * s], ".gralora_B": [k, k * s, width // k]}
    if hybrid_r:
        shapes[".gralora_A_general.weight"] = [hybrid_r, width]
        shapes[".gralora_B_general.weight"] = [width, hybrid_r]
    dtype, form = draw(st.sampled_from([("F32", "f"), ("F64", "d"), ("F16", "e"), ("BF16", "e")]))
    header, data = {}, b""
    for layer in draw(st.sampled_from([("layers.0.up",), ("layers.0.up", "layers.1.up")])):
        for ending, shape in shapes.items():
            start, count = len(data), math.prod(shape)
            data += struct.pack(f"<{count}{form}", *(0.01 * (i % 7 - 3) for i in range(count)))
            header[f"{prefix}{layer}{ending}"] = {
                "dtype": dtype, "shape": shape, "data_offsets": [start, len(data)],
            }  # fmt: skip
    content = {
        **config, "r": k * s, "gralora_k": k, "hybrid_r": hybrid_r, "alpha": alpha,
        "modules_to_save": None,
    }  # fmt: skip
    return {
        "adapter_config.json": json.dumps(content).encode(),
        "adapter_model.safetensors": safetensors(json.dumps(header), data),
    }
