"""Ctrl-C in the midst of writing: one line, exit code 130, and nothing half written."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.cli import main
from gralora.nn.spec import make_spec

# Writes a part of the first file, says so and waits.
SLOW = """
import sys, time
from gralora.storage import atomic
def wait(path, write):
    path.write_bytes(b"half")
    print("waiting", flush=True)
    time.sleep(60)
atomic._write = wait
from gralora.cli import main
main(sys.argv[1:], prog_name="gralora")
"""
COMMANDS = {
    "combine": ["combine", "adapter", "out"],
    "export-lora": ["export-lora", "adapter", "new/out"],
    "import-lora": ["import-lora", "lora", "out", "--k", "2"],
    "convert": ["convert", "fork", "out"],
    "inspect": ["inspect", "adapter", "--plot", "out.png"],
    "combine into an earlier adapter": ["combine", "adapter", "earlier", "--overwrite"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds an adapter of each kind."""
    spec = make_spec(8, 8, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    for name in ("adapter", "earlier", "fork"):
        layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
        write_adapter(tmp_path / name, {"up": layer})
    fork = {"peft_type": "GRALORA", "r": 4, "gralora_alpha": 8, "gralora_k": 2}
    # Written anew, since the digest of the config is in the tensors' file.
    tensors = {f"base_model.model.up.gralora_{part}": torch.randn(2, 4, 4) for part in "AB"}
    save_file(tensors, tmp_path / "fork" / "adapter_model.safetensors")
    _write_config(tmp_path / "fork", fork)
    (tmp_path / "lora").mkdir()
    tensors = {f"base_model.model.up.lora_{part}.weight": torch.randn(8, 8) for part in "AB"}
    save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    _write_config(tmp_path / "lora", {"peft_type": "LORA", "r": 8, "lora_alpha": 8})
    return tmp_path


def _write_config(directory: Path, content: dict[str, object]) -> None:
    text = json.dumps({"target_modules": ["up"], **content})
    (directory / "adapter_config.json").write_text(text)


def _tree(root: Path) -> dict[str, bytes | None]:
    """Every path, with the content of files."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("case", COMMANDS)
def test_nothing_is_left_and_one_line_says_so(case: str, folder: Path) -> None:
    if case == "inspect":
        pytest.importorskip("matplotlib")
    before = _tree(folder)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SLOW, *COMMANDS[case]],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background of a shell hands down that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    assert _tree(folder) != before
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    command = COMMANDS[case][0]
    assert errors == f"gralora {command}: interrupted; nothing was written\n"
    assert output == ""
    assert _tree(folder) == before


SWALLOWED = """
import os, signal, sys
from gralora.cli import errors, main
def imported(name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass
    except KeyboardInterrupt:
        pass
errors.import_module = imported
main(sys.argv[1:], prog_name="gralora")
"""


def test_interruption_that_an_import_swallows_is_not_lost(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", SWALLOWED, "combine", "adapter", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert result.returncode == 130
    assert result.stderr == "gralora combine: interrupted; nothing was written\n"
    assert not (folder / "out").exists()


def test_what_was_written_before_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    product = importlib.import_module("gralora.adapters.combine")
    monkeypatch.setattr(product, "Combined", interrupted)
    result = CliRunner().invoke(main, ["combine", str(folder / "adapter"), str(folder / "out")])
    assert result.exit_code == 130
    assert result.stderr == f"gralora combine: interrupted; {folder / 'out'} is complete\n"
