"""transformers.Trainer trains, saves and resumes an injected model."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from training_group import language_model
from transformers import Trainer, TrainingArguments

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject

STEPS = 3


class Sentences(Dataset):
    """Twelve sequences of token ids, the same at every run."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        self.ids = torch.randint(1, 64, (12, 9), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def injected(**settings):
    torch.manual_seed(7)
    return inject(language_model(**settings), GraLoRAConfig(r=8, modules_to_save=["lm_head"]))


def train(model, folder, resume=None, **options):
    with warnings.catch_warnings():
        # Newer releases call checkpointing of gradients that of activations.
        warnings.simplefilter("ignore", FutureWarning)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            save_steps=1,
            learning_rate=0.01,
            warmup_steps=0,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=5,
            **options,
        )
        Trainer(model, arguments, train_dataset=Sentences()).train(resume_from_checkpoint=resume)
    return model.state_dict()


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole_run(request, tmp_path_factory):
    """Weights after all steps without a pause, the folder of its checkpoints, and its settings."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {"tie_word_embeddings": request.param}
    return train(injected(**settings), folder), folder, settings


def test_only_the_adapter_and_its_copies_change(whole_run):
    state, _, settings = whole_run
    fresh = injected(**settings)
    trained = {n for n, p in fresh.named_parameters(remove_duplicate=False) if p.requires_grad}
    before = fresh.state_dict()
    changed = {key for key, value in state.items() if not torch.equal(value, before[key])}
    assert changed == trained


def test_resumed_run_ends_with_the_same_weights(whole_run, tmp_path):
    state, folder, settings = whole_run
    resumed = train(injected(**settings), tmp_path, resume=str(folder / "checkpoint-2"))
    assert all(torch.equal(resumed[key], value) for key, value in state.items())


def test_checkpoint_has_base_and_adapter_under_the_models_own_keys(whole_run):
    state, folder, settings = whole_run
    saved = load_file(folder / f"checkpoint-{STEPS}" / "model.safetensors")
    # Of keys that share one tensor transformers keeps a single one.
    dropped = {key for key in state if key.startswith("lm_head")}
    expected = set(state) - dropped if settings["tie_word_embeddings"] else set(state)
    assert set(saved) == expected
    assert "model.layers.0.self_attn.q_proj.weight" in saved
    assert "model.layers.0.self_attn.q_proj.gralora_A.default" in saved
    assert all(torch.equal(value, state[key]) for key, value in saved.items())


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_gradient_checkpointing_changes_no_weight(whole_run, tmp_path, reentrant):
    state, _, settings = whole_run
    checkpointed = train(
        injected(**settings),
        tmp_path,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    for key, value in state.items():
        torch.testing.assert_close(checkpointed[key], value)
