"""Loading that fails while values are copied into the model, as where memory runs out."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from storage_models import assert_unchanged, llama, our_model, outputs, snapshot

from gralora.injection.record import injection_state
from gralora.storage import adapter_files
from gralora.storage.adapter_files import load_adapter, save_adapter

SETTINGS = {
    "plain": {},
    "hybrid": {"hybrid_r": 2},
    "biases": {"bias": "all"},
    "saved-module": {"modules_to_save": ["lm_head"]},
    "other-layers": {"target_modules": ["gate_proj"]},
}


@pytest.fixture
def failing_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies all values but the last, then fails; works again afterwards."""
    original = adapter_files.copy_into

    def copy_most(live: Any, values: Any) -> None:
        monkeypatch.setattr(adapter_files, "copy_into", original)
        original(live, dict(list(values.items())[:-1]))
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(adapter_files, "copy_into", copy_most)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_bare_model_is_left_as_it_was(
    settings: dict[str, Any], tmp_path: Path, failing_copy: None
) -> None:
    base = llama(attention_bias=True)
    save_adapter(our_model(base, **settings), tmp_path)
    before = snapshot(base)
    with pytest.raises(torch.OutOfMemoryError):
        load_adapter(base, tmp_path)
    assert_unchanged(base, before)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_injected_model_is_left_as_it_was(
    settings: dict[str, Any], tmp_path: Path, failing_copy: None
) -> None:
    base = llama(attention_bias=True)
    save_adapter(our_model(base, **settings), tmp_path)
    model = our_model(base, "first", modules_to_save=["lm_head"])
    before, result = snapshot(model), outputs(model)
    state = copy.deepcopy(injection_state(model))
    with pytest.raises(torch.OutOfMemoryError):
        load_adapter(model, tmp_path, "second")
    assert_unchanged(model, before)
    assert injection_state(model) == state
    assert torch.equal(outputs(model), result)


def test_it_can_be_tried_again(tmp_path: Path, failing_copy: None) -> None:
    base = llama()
    trained = our_model(base)
    save_adapter(trained, tmp_path)
    with pytest.raises(torch.OutOfMemoryError):
        load_adapter(base, tmp_path)
    torch.testing.assert_close(outputs(load_adapter(base, tmp_path)), outputs(trained))


def test_a_warning_turned_into_an_error_changes_nothing(tmp_path: Path) -> None:
    from storage_models import peft_saved

    base = llama(tie_word_embeddings=True)
    peft_saved(base, tmp_path, modules_to_save=["lm_head"])
    before = snapshot(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*are not tied")
        with pytest.raises(UserWarning, match="are not tied"):
            load_adapter(base, tmp_path)
    assert_unchanged(base, before)
