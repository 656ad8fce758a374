"""Commands that get another kind of thing than they take say which command takes that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.cli import main
from gralora.nn.spec import make_spec

GRALORA = ("inspect THING", "export-lora THING out", "combine THING out", "merge base THING out")
TO_IMPORT = "gralora import-lora writes it as a GraLoRA adapter"
A_DORA = "PEFT's merge_and_unload merges a DoRA into its model"
A_MODEL = "this is the folder of a model, since it has config.json and no adapter_config.json"
A_FILE = "this is a file: give the folder that holds it beside its config"
FOLDERS = "it has adapters in folders of their own: checkpoint-10, checkpoint-20"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with things that may be taken for one another."""
    spec = make_spec(8, 8, r=4, k=2, alpha=4, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    for name in ("gralora", "run/checkpoint-10", "run/checkpoint-20"):
        write_adapter(tmp_path / name, {"up": layer})
    for name, dora in (("lora", False), ("dora", True)):
        (tmp_path / name).mkdir()
        tensors = {f"base_model.model.up.lora_{part}.weight": torch.randn(8, 8) for part in "AB"}
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_dora": dora}
        text = json.dumps({**config, "target_modules": ["up"]})
        (tmp_path / name / "adapter_config.json").write_text(text)
    for name in ("base", "merged"):
        (tmp_path / name).mkdir()
        save_file({"up.weight": torch.randn(8, 8)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = [
    *((command, "lora", TO_IMPORT) for command in GRALORA),
    *((command, "dora", A_DORA) for command in (*GRALORA, "import-lora THING out --k 2")),
    *((command, "merged", A_MODEL) for command in (*GRALORA, "import-lora THING out --k 2")),
    *((command, "merged/model.safetensors", A_FILE) for command in GRALORA),
    *((command, "run", FOLDERS) for command in (*GRALORA, "convert THING out")),
    ("import-lora THING out --k 2", "gralora", "this is a GraLoRA adapter already: gralora"),
    ("import-lora THING out --k 2", "lora/adapter_model.safetensors", A_FILE),
    ("convert THING out", "lora", TO_IMPORT),
    ("convert THING out", "merged", A_MODEL),
    ("convert THING out", "gralora", "PEFT's already"),
]


@pytest.mark.parametrize(("command", "thing", "hint"), CASES, ids=str)
def test_refusal_says_what_takes_it(command: str, thing: str, hint: str, folder: Path) -> None:
    result = CliRunner().invoke(main, command.replace("THING", thing).split())
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert hint in line
    assert not (folder / "out").exists()


def test_what_does_not_exist_gets_no_hint(folder: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", "nothing"])
    assert result.stderr == "gralora inspect: ADAPTER must be an existing folder, got nothing\n"
