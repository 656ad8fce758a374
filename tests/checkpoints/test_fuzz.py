"""Bases that were changed at random: a clean error or a merge, and no file outside the output."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gralora.adapters.stored import StoredLayer, read_adapter
from gralora.adapters.write import write_adapter
from gralora.checkpoints.folder import open_checkpoint
from gralora.checkpoints.merge import merge_checkpoint
from gralora.checkpoints.plan import make_plan
from gralora.nn.spec import make_spec

INDEX = "model.safetensors.index.json"
FILES = ("a.safetensors", "b.safetensors", INDEX, "config.json")
KEYS = ("layers.0.up.weight", "layers.1.up.weight", "lm_head.weight", "norm.weight")
REFUSALS = (OSError, ValueError, TypeError)
# All of it takes minutes: GRALORA_FUZZ=10 is ten times as many inputs, and others each time.
FACTOR = int(os.environ.get("GRALORA_FUZZ", "1"))
FUZZ: dict[str, Any] = {
    "derandomize": FACTOR == 1,
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of two shards, an adapter of it, and a secret beside them."""
    root = tmp_path_factory.mktemp("fuzz")
    base = root / "base"
    base.mkdir()
    homes = {}
    for name, keys in (("a.safetensors", KEYS[:2]), ("b.safetensors", KEYS[2:])):
        save_file({key: torch.randn(8, 8) for key in keys}, base / name)
        homes |= dict.fromkeys(keys, name)
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    (base / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    (root / "secret.safetensors").write_bytes((base / "a.safetensors").read_bytes())
    spec = make_spec(8, 8, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    write_adapter(root / "adapter", {"layers.0.up": layer})
    return root


@pytest.fixture
def copied(root: Path) -> Iterator[Any]:
    """``copied(name, content)``: the folder's copy in which a file has other content."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "copy")
        shutil.copytree(root, copy)
        originals = {name: (copy / "base" / name).read_bytes() for name in FILES}

        def change(name: str, content: bytes) -> Path:
            for other, original in originals.items():
                (copy / "base" / other).write_bytes(content if other == name else original)
            return copy

        yield change


def _check_clean(error: Exception) -> None:
    """The error is one that a reader can act on, not one of Python's own."""
    assert str(error).startswith("merge_checkpoint: "), repr(error)
    assert len(str(error)) < 3000


def _plan(folder: Path, stored: Any) -> None:
    """Everything that is read and checked before a merge writes."""
    try:
        plan = make_plan(open_checkpoint(folder / "base"), [(stored, 1.0)], dtype=None, layout=None)
    except REFUSALS as error:
        _check_clean(error)
        return
    for name in plan.shards:
        assert os.path.basename(name) == name


@settings(max_examples=400 * FACTOR, **FUZZ)
@given(data=st.data())
def test_bytes_that_were_changed_are_refused_or_harmless(
    data: st.DataObject, copied: Any, root: Path
) -> None:
    stored = read_adapter(root / "adapter")
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((root / "base" / name).read_bytes())
    # The headers, where bytes mean something.
    places = st.integers(0, min(len(content), 400) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    _plan(copied(name, bytes(content[:end])), stored)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.one_of(
    st.sampled_from(
        ["a.safetensors", "b.safetensors", "../secret.safetensors", "/etc/passwd", ".", "..", "",
         "sub/../../secret.safetensors", "a.safetensors\0", "config.json", "A.SAFETENSORS"]
    ),
    JSON,
)  # fmt: skip


@settings(max_examples=400 * FACTOR, **FUZZ)
@given(
    homes=st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), NAMES, max_size=6),
    rest=st.dictionaries(st.text(max_size=8), JSON, max_size=2),
)
def test_indexes_of_any_content_are_refused_or_harmless(
    homes: dict[str, Any], rest: dict[str, Any], copied: Any, root: Path
) -> None:
    stored = read_adapter(root / "adapter")
    _plan(copied(INDEX, json.dumps({**rest, "weight_map": homes}).encode()), stored)


@settings(max_examples=200 * FACTOR, **FUZZ)
@given(
    config=st.one_of(
        JSON,
        st.dictionaries(
            st.sampled_from(
                ["model_type", "auto_map", "tie_word_embeddings", "text_config", "architectures",
                 "torch_dtype", "_class_name"]
            ),
            JSON,
        ),
    )
)  # fmt: skip
def test_configs_of_any_content_are_refused_or_harmless(
    config: Any, copied: Any, root: Path
) -> None:
    stored = read_adapter(root / "adapter")
    _plan(copied("config.json", json.dumps(config).encode()), stored)


@settings(max_examples=25 * FACTOR, **FUZZ)
@given(data=st.data())
def test_a_merge_writes_nothing_but_its_output(
    data: st.DataObject, copied: Any, root: Path
) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((root / "base" / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    folder = copied(name, bytes(content))
    before = set(folder.parent.rglob("*"))
    try:
        merge_checkpoint(folder / "base", folder / "adapter", folder / "out")
    except REFUSALS as error:
        _check_clean(error)
        assert set(folder.parent.rglob("*")) == before
    else:
        new = set(folder.parent.rglob("*")) - before
        assert all(path.is_relative_to(folder / "out") for path in new)
        shutil.rmtree(folder / "out")
