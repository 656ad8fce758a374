"""Bases, adapters and arguments that merge_checkpoint refuses, before it writes anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_on_disk import (
    adapted,
    contents,
    gpt2,
    llama,
    plain_base,
    save_adapter,
    save_base,
    shards,
    tensors,
)
from safetensors.torch import load_file, save_file

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.checkpoints.folder import open_checkpoint
from gralora.checkpoints.merge import merge_checkpoint
from gralora.nn.spec import make_spec

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and an adapter, not to be changed."""
    root = tmp_path_factory.mktemp("originals")
    model = llama()
    save_base(model, root / "base")
    save_adapter(adapted(model), root / "adapter")
    return root


@pytest.fixture
def base(originals: Path, tmp_path: Path) -> Path:
    """A base that may be changed."""
    return Path(shutil.copytree(originals / "base", tmp_path / "base"))


def _refused(base: Path, adapter: Any, kind: type[Exception], match: str, **settings: Any) -> None:
    """The merge is refused and leaves nothing beside the base."""
    out = base.parent / "out"
    before = sorted(base.parent.rglob("*"))
    with pytest.raises(kind, match=match):
        merge_checkpoint(base, adapter, out, **settings)
    assert sorted(base.parent.rglob("*")) == before


def _edit_index(base: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((base / INDEX).read_text())
    change(content)
    (base / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/x.safetensors",
        "..\\secret.safetensors",
        "..",
        "",
        "a\0.safetensors",
        "x" * 300 + ".safetensors",
    ],
    ids=["up", "absolute", "below", "backslash", "parent", "empty", "null", "long"],
)
def test_shard_names_that_leave_the_folder_are_refused(
    name: str, base: Path, originals: Path
) -> None:
    _edit_index(base, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    _refused(base, originals / "adapter", ValueError, "must be the plain name of a file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda i: i["weight_map"].update({"lm_head.weight": 3}), "plain name"),
        (lambda i: i["weight_map"].update({"lm_head.weight": ["x"]}), "plain name"),
        (lambda i: i["weight_map"].update({"lm_head.weight": "config.json"}), "must end in"),
        (lambda i: i.update(weight_map=[]), "must have a weight_map"),
        (lambda i: i.update(weight_map={}), "must have a weight_map"),
        (lambda i: i["weight_map"].pop("lm_head.weight"), "got it wrong for 1: 'lm_head.weight'"),
        (lambda i: i["weight_map"].update({"x": i["weight_map"]["lm_head.weight"]}), "wrong for 1"),
    ],
    ids=[
        "number",
        "list of names",
        "no shard",
        "list",
        "empty",
        "missing key",
        "key that no shard has",
    ],
)
def test_an_index_that_is_wrong_is_refused(
    change: Callable[[dict[str, Any]], Any], match: str, base: Path, originals: Path
) -> None:
    _edit_index(base, change)
    _refused(base, originals / "adapter", ValueError, match)


def test_a_key_given_twice_in_the_index_is_refused(base: Path, originals: Path) -> None:
    text = (base / INDEX).read_text()
    (base / INDEX).write_text(text.replace('"weight_map": {', '"weight_map": {"x": "a", "x": "b",'))
    _refused(base, originals / "adapter", ValueError, "'x' is given twice")


def test_a_tensor_in_two_shards_is_refused(base: Path, originals: Path) -> None:
    first, second = shards(base)[:2]
    key = next(iter(load_file(first)))
    save_file({**load_file(second), key: torch.zeros(1)}, second)
    _refused(base, originals / "adapter", ValueError, "must be in one shard, got")


def test_a_header_that_claims_to_be_huge_is_refused(base: Path, originals: Path) -> None:
    with shards(base)[2].open("r+b") as file:
        file.write((2**40).to_bytes(8, "little"))
    _refused(base, originals / "adapter", ValueError, "must have a header of at most")


def test_a_missing_shard_is_named(base: Path, originals: Path) -> None:
    missing = shards(base)[2]
    missing.unlink()
    _refused(base, originals / "adapter", FileNotFoundError, f"{missing.name} is missing")


@pytest.mark.parametrize("name", ["shard", "tokenizer.json", "config.json", INDEX])
def test_links_that_leave_the_folder_are_refused(name: str, base: Path, originals: Path) -> None:
    path = shards(base)[1] if name == "shard" else base / name
    outside = base.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    _refused(base, originals / "adapter", ValueError, "files must lie in the folder, got the link")


def test_links_within_the_hub_cache_are_followed(originals: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((originals / "base").iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    merge_checkpoint(snapshot, originals / "adapter", tmp_path / "out")
    merge_checkpoint(originals / "base", originals / "adapter", tmp_path / "wanted")
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


def test_a_pipe_in_the_place_of_a_shard_is_refused(base: Path, originals: Path) -> None:
    path = shards(base)[0]
    path.unlink()
    os.mkfifo(path)
    _refused(base, originals / "adapter", ValueError, "must be a regular file")


def test_two_models_in_one_folder_are_refused(originals: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, base / name)
    _refused(base, originals / "adapter", ValueError, "must hold one model, got a.safetensors, b")


def test_pickled_models_are_refused_with_the_way_out(originals: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "pytorch_model.bin").write_bytes(b"")
    _refused(base, originals / "adapter", FileNotFoundError, "hold pickled code: save the model as")


def test_code_and_pickles_stay_behind_and_are_named(base: Path, originals: Path) -> None:
    names = ["modeling_x.py", "optimizer.pt", "run.sh", "consolidated.safetensors", "notes"]
    for name in names:
        (base / name).write_text("x")
    (base / "runs").mkdir()
    report = merge_checkpoint(base, originals / "adapter", base.parent / "out")
    assert report.left_out == {
        "modeling_x.py": "code",
        "optimizer.pt": "pickled, or weights in another format",
        "run.sh": "code",
        "consolidated.safetensors": "weights in another format",
        "notes": "of an unknown kind",
        "runs": "a folder",
    }
    assert not {*names, "runs"} & set(contents(base.parent / "out"))


def test_code_goes_along_when_it_is_asked_for(base: Path, originals: Path) -> None:
    (base / "modeling_x.py").write_text("x = 1")
    (base / "modeling_x.py").chmod(0o755)
    out = base.parent / "out"
    report = merge_checkpoint(base, originals / "adapter", out, with_code=True)
    assert "modeling_x.py" in report.copied
    assert (out / "modeling_x.py").read_text() == "x = 1"
    assert not os.access(out / "modeling_x.py", os.X_OK)


def _square(directory: Path, **changes: Any) -> Path:
    """An adapter of one square layer."""
    spec = make_spec(8, 8, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    write_adapter(directory, {changes.pop("name", "up"): layer}, **changes)
    return directory


@pytest.mark.parametrize(
    "config", [{}, {"auto_map": {}, "x": 1}, {"model_type": "x", "auto_map": {"AutoModel": "x.X"}}],
    ids=["no config", "no kind", "code of its own"],
)  # fmt: skip
def test_square_weights_of_an_unknown_layout_are_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    base = plain_base(tmp_path / "base", {"up.weight": torch.zeros(8, 8)}, **config)
    adapter = _square(tmp_path / "adapter")
    _refused(base, adapter, ValueError, r'pass layout="linear".* or layout="conv1d"')


@pytest.mark.parametrize("layout", ["linear", "conv1d"])
def test_the_layout_can_be_given(layout: Any, tmp_path: Path) -> None:
    from gralora.adapters.stored import read_adapter

    base = plain_base(tmp_path / "base", {"up.weight": torch.zeros(8, 8)})
    adapter = _square(tmp_path / "adapter")
    merge_checkpoint(base, adapter, tmp_path / "out", layout=layout)
    delta = read_adapter(adapter).layers["up"].delta()
    wanted = delta.t() if layout == "conv1d" else delta
    torch.testing.assert_close(tensors(tmp_path / "out")["up.weight"], wanted)


def test_adapters_of_another_model_are_refused(originals: Path, tmp_path: Path) -> None:
    base = plain_base(tmp_path / "base", {"down.weight": torch.zeros(8, 8)}, model_type="x")
    _refused(base, _square(tmp_path / "adapter"), ValueError, "got 1 of 1 adapted modules without")


def test_adapters_of_other_sizes_are_refused(tmp_path: Path) -> None:
    base = plain_base(tmp_path / "base", {"up.weight": torch.zeros(8, 16)}, model_type="x")
    _refused(base, _square(tmp_path / "adapter"), ValueError, r"got up with the weight \[8, 16\]")


def test_names_that_fit_in_two_ways_are_refused(tmp_path: Path) -> None:
    values = {f"{name}.layers.0.up.weight": torch.zeros(8, 8) for name in ("text", "vision")}
    base = plain_base(tmp_path / "base", values, model_type="x")
    adapter = _square(tmp_path / "adapter", name="model.layers.0.up")
    match = r"in one way, got model\. to text\., model\. to vision\."
    _refused(base, adapter, ValueError, match)


def test_layer_numbers_are_never_changed(tmp_path: Path) -> None:
    base = plain_base(tmp_path / "base", {"layers.1.up.weight": torch.zeros(8, 8)}, model_type="x")
    adapter = _square(tmp_path / "adapter", name="layers.0.up")
    _refused(base, adapter, ValueError, "adapted modules without a weight")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    values = {"up.weight": torch.zeros(8, 8, dtype=torch.int8)}
    base = plain_base(tmp_path / "base", values, model_type="x")
    _refused(base, _square(tmp_path / "adapter"), TypeError, "before it was quantised")


def test_saved_modules_of_another_size_are_refused(tmp_path: Path) -> None:
    values = {"up.weight": torch.zeros(8, 8), "norm.weight": torch.zeros(8)}
    base = plain_base(tmp_path / "base", values, model_type="x")
    adapter = _square(tmp_path / "adapter", saved={"norm.weight": torch.zeros(9)})
    _refused(base, adapter, ValueError, r"must have the base's shape \[8\], got \[9\]")


def test_adapters_with_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base = plain_base(tmp_path / "base", {"up.weight": torch.zeros(8, 8)}, model_type="x")
    adapter = _square(tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    values = load_file(path)
    next(iter(values.values())).view(-1)[0] = float("nan")
    save_file(values, path)
    _refused(base, adapter, ValueError, "all numbers must be finite")


def test_an_adapter_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    import gralora

    base = save_base(gpt2(), tmp_path / "base")
    torch.manual_seed(0)
    untied = gralora.inject(
        gpt2(tie_word_embeddings=False), gralora.GraLoRAConfig(r=4, target_modules=["lm_head"])
    )
    adapter = save_adapter(untied, tmp_path / "adapter")
    _refused(base, adapter, ValueError, "must not be shared, got lm_head, which is tied")


def test_a_frozen_copy_of_another_base_is_refused(originals: Path, tmp_path: Path) -> None:
    from peft import GraloraConfig, get_peft_model

    model = get_peft_model(llama(), GraloraConfig(r=4, gralora_k=2, target_modules=["lm_head"]))
    model.save_pretrained(tmp_path / "adapter")
    merge_checkpoint(originals / "base", tmp_path / "adapter", tmp_path / "right")
    base = Path(shutil.copytree(originals / "base", tmp_path / "base"))
    home = next(path for path in shards(base) if "lm_head.weight" in load_file(path))
    values = load_file(home)
    values["lm_head.weight"][0, 0] += 1
    save_file(values, home, metadata={"format": "pt"})
    _refused(base, tmp_path / "adapter", ValueError, "trained on another base model")


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": ({"dtype": torch.int8}, TypeError, "dtype must be None or one of"),
    "layout": ({"layout": "rows"}, ValueError, "layout must be None or one of"),
    "device": ({"device": "gpu"}, RuntimeError, "must be cpu or cuda, got gpu"),
    "meta device": ({"device": "meta"}, RuntimeError, "must be cpu or cuda, got meta"),
    "missing GPU": ({"device": "cuda:99"}, RuntimeError, "device cuda:99 cannot be used"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments_are_refused(case: str, base: Path, originals: Path) -> None:
    settings, kind, match = ARGUMENTS[case]
    _refused(base, originals / "adapter", kind, match, **settings)


@pytest.mark.parametrize(
    ("weight", "kind"),
    [(float("nan"), ValueError), (1e7, ValueError), ("1", TypeError), (True, TypeError)],
    ids=str,
)
def test_wrong_weights_are_refused(
    weight: Any, kind: type[Exception], base: Path, originals: Path
) -> None:
    _refused(base, [(originals / "adapter", weight)], kind, "the weight of")


def test_no_adapter_at_all_is_refused(base: Path) -> None:
    _refused(base, [], ValueError, "adapters must hold at least one")


def test_an_output_that_exists_is_kept(base: Path, originals: Path) -> None:
    out = base.parent / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    _refused(base, originals / "adapter", FileExistsError, "must be absent or an empty folder")
    assert (out / "thesis.txt").read_text() == "mine"


def test_an_output_inside_the_base_is_refused(base: Path, originals: Path) -> None:
    with pytest.raises(ValueError, match="must lie outside the base"):
        merge_checkpoint(base, originals / "adapter", base / "merged")


def test_the_base_of_diffusers_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"up.weight": torch.zeros(8, 8)}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert open_checkpoint(folder).shards[0].name == "diffusion_pytorch_model.safetensors"
    merge_checkpoint(folder, _square(tmp_path / "adapter"), tmp_path / "out")
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").exists()
