"""The examples of language models on SmolLM2 and real text, two steps each."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from examples_framework_runs import PACKAGES, FrameworkRun, finish_example

LANGUAGE = tuple(PACKAGES)[:3]
OPTIONS = ("--device", "cpu", "--steps", "2", "--batch", "1", "--held-out", "3", "--seq-len", "128")


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """Model and tokenizer, read from the file once for all runs."""
    for package in ("transformers", "gguf", "accelerate"):
        pytest.importorskip(package)
    import smollm2

    try:
        weights = smollm2.fetch(smollm2.default_cache())
    except smollm2.DownloadError as error:
        pytest.skip(str(error))
    return smollm2.load(weights, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module", params=LANGUAGE)
def run(
    request: pytest.FixtureRequest,
    loaded: tuple[Any, Any],
    torch_settings_of_module: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> FrameworkRun:
    """Two steps of an example with its own text."""
    folder: Path = tmp_path_factory.mktemp("smollm2") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["smollm2"], "load", lambda *_: copy.deepcopy(loaded))
        return finish_example(request.param, folder, *OPTIONS)


def test_the_held_out_loss_falls(run: FrameworkRun) -> None:
    losses = run.record["held_out_losses"]
    assert losses["2"] < losses["0"]


def test_each_projection_of_each_layer_is_trained(run: FrameworkRun) -> None:
    shapes = 2 * [(576, 576)] + 2 * [(576, 192)] + 3 * [(576, 1536)]
    expected = 30 * sum(16 * (inputs + outputs) for inputs, outputs in shapes)
    assert run.record["trainable_parameters"] == expected
    assert sum(tensor.numel() for tensor in run.adapter.values()) == expected


def test_the_adapter_names_the_model_that_everyone_can_load(run: FrameworkRun) -> None:
    config = (run.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert '"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"' in config
