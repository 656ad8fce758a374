"""Files beside the weights: a tokenizer goes along as a whole, what is no part of it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints_on_disk import contents, plain_base, workspace
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.checkpoints import merge as product
from gralora.checkpoints.merge import merge_checkpoint
from gralora.nn.spec import make_spec

TEMPLATES = "additional_chat_templates"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base of one layer and an adapter of it."""
    plain_base(tmp_path / "base", {"up.weight": torch.randn(8, 8)}, model_type="llama")
    spec = make_spec(8, 8, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    write_adapter(tmp_path / "adapter", {"up": layer})
    return tmp_path


def _merge(root: Path) -> product.MergeReport:
    return merge_checkpoint(root / "base", root / "adapter", root / "out")


def _add_template(root: Path, name: str = "tool_use.jinja", text: str = "{{ tools }}") -> Path:
    path = root / "base" / TEMPLATES / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_every_chat_template_is_the_merged_models(root: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    templates = {"default": "{{ messages }}", "tool_use": "{{ tools }}", "rag": "{{ documents }}"}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(root / "base")
    assert AutoTokenizer.from_pretrained(root / "base").chat_template == templates
    report = _merge(root)
    assert AutoTokenizer.from_pretrained(root / "out").chat_template == templates
    assert f"{TEMPLATES}/tool_use.jinja" in report.copied


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v13"])
def test_a_tokenizer_goes_along(name: str, root: Path) -> None:
    (root / "base" / name).write_bytes(b"pieces")
    _merge(root)
    assert (root / "out" / name).read_bytes() == b"pieces"


@pytest.mark.parametrize("name", ["tokenizer.model.v3.exe", "model.v3", "tokenizer.model.vx"])
def test_what_only_looks_like_a_tokenizer_does_not(name: str, root: Path) -> None:
    (root / "base" / name).write_bytes(b"")
    assert _merge(root).left_out == {name: "of an unknown kind"}
    assert not (root / "out" / name).exists()


def test_other_files_and_folders_beside_the_templates_do_not_go_along(root: Path) -> None:
    _add_template(root, "run.py")
    _add_template(root, "a.txt")
    (root / "base" / TEMPLATES / "deep.jinja").mkdir()
    (root / "base" / TEMPLATES / "deep.jinja" / "x.jinja").write_text("")
    assert _merge(root).left_out == {
        f"{TEMPLATES}/a.txt": "no template",
        f"{TEMPLATES}/deep.jinja": "a folder",
        f"{TEMPLATES}/run.py": "no template",
    }
    assert not (root / "out" / TEMPLATES).exists()


def test_a_template_that_is_a_link_out_of_the_folder_is_refused(root: Path) -> None:
    secret = root / "secret"
    secret.write_text("mine")
    path = _add_template(root)
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(ValueError, match="files must lie in the folder, got the link"):
        _merge(root)
    assert not (root / "out").exists()


def test_a_folder_of_templates_that_is_a_link_out_of_the_folder_is_refused(root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "mine.jinja").write_text("mine")
    (root / "base" / TEMPLATES).symlink_to(root / "elsewhere")
    with pytest.raises(ValueError, match="files must lie in the folder, got the link"):
        _merge(root)
    assert not (root / "out").exists()


def test_templates_of_the_hubs_cache_are_followed_to_its_blobs(root: Path) -> None:
    snapshot = root / "model" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    path = _add_template(root)
    (root / "model" / "blobs").mkdir()
    path.rename(root / "model" / "blobs" / "abc")
    path.symlink_to("../../../blobs/abc")
    (root / "base").rename(snapshot)
    merge_checkpoint(snapshot, root / "adapter", root / "out")
    copied = root / "out" / TEMPLATES / "tool_use.jinja"
    assert (copied.read_text(), copied.is_symlink()) == ("{{ tools }}", False)


def test_a_merge_that_was_killed_at_its_end_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _add_template(root)
    merge_checkpoint(root / "base", root / "adapter", root / "whole")
    # A killed process tidies nothing: what it leaves is what lies there before it publishes.
    work = workspace(root / "out")
    monkeypatch.setattr(product.Workspace, "publish", lambda self: self.path.rename(root / "kept"))
    _merge(root)
    monkeypatch.undo()
    (root / "kept").rename(work)
    assert (work / TEMPLATES / "tool_use.jinja").exists()
    (work / TEMPLATES / "stale.jinja").write_text("of an earlier base")
    assert _merge(root).resumed == 1
    out, whole = root / "out", root / "whole"
    assert contents(out / TEMPLATES) == contents(whole / TEMPLATES)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_templates_that_no_merge_left_are_kept(kind: str, root: Path) -> None:
    place = workspace(root / "out") / TEMPLATES
    mine = root / "mine"
    mine.mkdir()
    place.parent.mkdir()
    (place.parent / "gralora_merge.json").write_text("{}")
    if kind == "link":
        place.symlink_to(mine)
    else:
        (place / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="must be absent or left by a merge"):
        _merge(root)
    assert place.exists()
    assert mine.exists()
