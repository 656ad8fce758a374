"""Files that were changed at random: bytes, the structure of JSON, the numbers of headers."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

_MOST_CHANGES = 3

NUMBERS = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 2, 3, 4, 8, 16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64,
         10**400]
    ),
    st.integers(0, 300),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(
        ["up", "norm", "r", "alpha", "dtype", "shape", "__metadata__", "weight_map",
         "a.safetensors", "../a.safetensors", "/etc/passwd", "layers.0.up.weight",
         "base_model.model.up.gralora_A", "base_model.model.norm.weight", "GRALORA",
         "GRALORA_EXT", "F32", "F64", "I64", "BOOL", "all", "rank_pattern", "k_pattern",
         "gralora_alpha", "architectures", "text_config", "\ud800", "\x1b[2J"]
    ),
    st.text(max_size=6),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes replaced, most of them in the first half, and perhaps an end cut off or added."""
    result = bytearray(content)
    places = st.one_of(st.integers(0, len(content) // 2), st.integers(0, len(content) - 1))
    for place in draw(st.lists(places, max_size=_MOST_CHANGES)):
        result[place] = draw(st.integers(0, 255))
    end = draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    return bytes(result[:end]) + draw(st.one_of(st.just(b""), st.binary(max_size=16)))


@st.composite
def changed_tree(draw: st.DrawFn, tree: Any) -> str:
    """JSON in which some values, keys or members are others, gone, or there twice."""
    tree = json.loads(json.dumps(tree))
    twice = False
    for _ in range(draw(st.integers(1, _MOST_CHANGES))):
        node = draw(st.sampled_from(_containers(tree)))
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        kind = draw(st.sampled_from(["value", "value", "name", "new", "remove", "twice"]))
        if kind == "value":
            node[key] = draw(VALUES)
        elif kind == "remove":
            del node[key]
        elif isinstance(node, list):
            node.insert(key, draw(VALUES))
        elif kind == "name":
            node[draw(NAMES)] = node.pop(key)
        elif kind == "new":
            node[draw(NAMES)] = draw(VALUES)
        else:
            twice = True
        if not _containers(tree):
            break
    text = json.dumps(tree)
    if twice and tree:
        first = json.dumps(dict([next(iter(tree.items()))]))
        text = f"{first[:-1]}, {text[1:]}"
    return text


def _containers(tree: Any) -> list[Any]:
    """Objects and lists within, those that are empty left out."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        if isinstance(node, (dict, list)) and node:
            found.append(node)
            left += node.values() if isinstance(node, dict) else node
    return found


@st.composite
def changed_numbers(draw: st.DrawFn, header: dict[str, Any]) -> str:
    """A header whose shapes, dtypes or offsets are others, perhaps with offsets that fit again."""
    header = json.loads(json.dumps(header))
    for _ in range(draw(st.integers(1, _MOST_CHANGES))):
        entry = header[draw(st.sampled_from(list(header)))]
        kind = draw(st.sampled_from(["size", "shape", "offset", "offsets", "dtype"]))
        if kind == "size" and entry["shape"]:
            entry["shape"][draw(st.integers(0, len(entry["shape"]) - 1))] = draw(NUMBERS)
        elif kind == "offset":
            entry["data_offsets"][draw(st.integers(0, 1))] = draw(NUMBERS)
        elif kind == "offsets":
            shift = draw(st.sampled_from([-128, -4, -1, 1, 4, 128]))
            entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
        elif kind == "dtype":
            entry["dtype"] = draw(st.sampled_from(["F16", "BF16", "F64", "I32", "U8", "BOOL"]))
        else:
            entry["shape"] = draw(st.permutations(entry["shape"]))
    if draw(st.booleans()):
        _lay_out(header)
    return json.dumps(header)


def _lay_out(header: dict[str, Any]) -> None:
    """Give each tensor the bytes that its shape takes, one behind the other, as far as one can."""
    widths = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
    position = 0
    for entry in header.values():
        length = widths.get(entry["dtype"], 1)
        for size in entry["shape"]:
            length *= size
        entry["data_offsets"] = [position, position + length]
        position += length


def safetensors(header: str, data: bytes) -> bytes:
    """A file with a header as it is, right or wrong."""
    blob = header.encode(errors="surrogatepass")
    return struct.pack("<Q", len(blob)) + blob + data
