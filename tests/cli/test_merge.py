"""``gralora merge``: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from gralora.adapters.stored import StoredLayer, read_adapter
from gralora.adapters.write import write_adapter
from gralora.checkpoints import merge as product
from gralora.cli import main
from gralora.cli.merge import parse_adapter
from gralora.nn.spec import make_spec


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model of two square layers in one file."""
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {f"layers.{i}.up.weight": torch.randn(8, 8) for i in range(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "modeling_llama.py").write_text("")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of its first layer."""
    spec = make_spec(8, 8, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    write_adapter(tmp_path / "adapter", {"layers.0.up": layer})
    return tmp_path / "adapter"


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


def _weight(folder: Path, layer: int = 0) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[f"layers.{layer}.up.weight"]


def test_output_says_what_was_merged_and_how_fast(base: Path, adapter: Path) -> None:
    result = _run(base, adapter, base.parent / "out")
    assert result.exit_code == 0
    assert "weights merged into │ 1" in result.stderr
    assert re.search(r"read +│ \d+ bytes in [\d.]+ s \([\d.]+ (bytes|kB|MB)/s\)", result.stderr)
    assert "left out: modeling_llama.py (code)" in result.stderr
    assert result.stdout == f"{base.parent / 'out'}: 1 weight merged, 1 shard\n"


def test_json_is_alone_on_standard_output(base: Path, adapter: Path) -> None:
    out = base.parent / "out"
    result = _run(base, adapter, out, "--json")
    report = json.loads(result.stdout)
    assert report["out"] == str(out)
    assert (report["layers"], report["shards"], report["resumed"]) == (1, 1, 0)
    assert report["bytes"] == (base / "model.safetensors").stat().st_size
    assert report["left_out"] == {"modeling_llama.py": "code"}
    assert report["copied"] == ["config.json"]
    assert {"seconds", "gb_per_s", "added", "replaced", "renamed", "untied"} <= report.keys()


@pytest.mark.parametrize("weight", [0.5, -1.0, 2.0])
def test_weights_follow_a_colon(weight: float, base: Path, adapter: Path) -> None:
    _run(base, f"{adapter}:{weight}", base.parent / "out")
    delta = read_adapter(adapter).layers["layers.0.up"].delta()
    torch.testing.assert_close(_weight(base.parent / "out"), _weight(base) + weight * delta)


def test_several_adapters_are_added_up(base: Path, adapter: Path) -> None:
    result = _run(base, f"{adapter}:0.25", f"{adapter}:0.5", adapter, base.parent / "out")
    assert result.exit_code == 0
    delta = read_adapter(adapter).layers["layers.0.up"].delta()
    torch.testing.assert_close(_weight(base.parent / "out"), _weight(base) + 1.75 * delta)


def test_dtype_is_taken(base: Path, adapter: Path) -> None:
    _run(base, adapter, base.parent / "out", "--dtype", "bfloat16")
    assert _weight(base.parent / "out", 1).dtype == torch.bfloat16


def test_code_goes_along_when_it_is_asked_for(base: Path, adapter: Path) -> None:
    _run(base, adapter, base.parent / "out", "--with-code")
    assert (base.parent / "out" / "modeling_llama.py").exists()


def test_layout_is_taken(base: Path, adapter: Path) -> None:
    (base / "config.json").unlink()
    refused = _run(base, adapter, base.parent / "out")
    assert refused.exit_code == 1
    assert "layout" in refused.stderr
    assert _run(base, adapter, base.parent / "out", "--layout", "linear").exit_code == 0


def test_a_folder_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run:2"
    folder.mkdir()
    assert parse_adapter(str(folder)) == (str(folder), 1.0)
    assert parse_adapter(f"{folder}:0.5") == (str(folder), 0.5)
    assert parse_adapter("missing:x") == ("missing:x", 1.0)


def test_a_weight_that_is_no_number_is_said(base: Path, adapter: Path) -> None:
    result = _run(base, f"{adapter}:x", base.parent / "out")
    assert result.exit_code == 1
    assert result.stderr == (
        f"gralora merge: ADAPTER must be an existing folder, got {adapter}:x (a weight after the "
        f"colon must be a number, as in {adapter}:0.5)\n"
    )


@pytest.mark.parametrize("device", ["foo", "meta", "mps"])
def test_another_device_is_refused_in_one_line(device: str, base: Path, adapter: Path) -> None:
    result = _run(base, adapter, base.parent / "out", "--device", device)
    assert result.exit_code == 1
    assert result.stderr == f"gralora merge: the device must be cpu or cuda, got {device}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(base: Path, adapter: Path) -> None:
    result = _run(base, adapter, base.parent / "out", "--device", "cuda")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("gralora merge: the device cuda cannot be used: ")
    assert not (base.parent / "out").exists()


def test_every_device_merges(device: torch.device, base: Path, adapter: Path) -> None:
    out = base.parent / "out"
    result = _run(base, adapter, out, "--device", device.type)
    assert result.exit_code == 0, result.output
    delta = read_adapter(adapter).layers["layers.0.up"].delta()
    torch.testing.assert_close(_weight(out), _weight(base) + delta)
    assert torch.equal(_weight(out, 1), _weight(base, 1))


def test_out_in_an_adapters_folder_is_refused(base: Path, adapter: Path) -> None:
    before = sorted(adapter.iterdir())
    result = _run(base, adapter, adapter / "merged")
    assert result.exit_code == 1
    assert result.stderr == (
        f"gralora merge: OUT must lie outside {adapter}, got {adapter / 'merged'}\n"
    )
    assert sorted(adapter.iterdir()) == before


def test_refusals_are_one_line_and_exit_with_1(base: Path, adapter: Path) -> None:
    (base.parent / "out").mkdir()
    (base.parent / "out" / "mine").write_text("")
    result = _run(base, adapter, base.parent / "out")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("gralora merge: OUT must be absent or an empty folder, got ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("base", "out"), ("base", "a", "out", "--dtype", "int8")],
    ids=["no adapter", "dtype"],
)
def test_misuse_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert _run(*arguments).exit_code == 2


def test_faults_of_the_product_keep_their_traceback(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AssertionError("a fault")

    monkeypatch.setattr(product, "make_plan", broken)
    assert isinstance(_run(base, adapter, base.parent / "out").exception, AssertionError)


def test_an_interruption_exits_with_130_and_says_how_to_go_on(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(product, "write_side_files", interrupted)
    result = _run(base, adapter, base.parent / "out")
    assert result.exit_code == 130
    assert "gralora merge: interrupted; OUT was not made" in result.stderr
    assert not (base.parent / "out").exists()
    monkeypatch.undo()
    assert json.loads(_run(base, adapter, base.parent / "out", "--json").stdout)["resumed"] == 1


SLOW = """
import sys, time
from gralora.checkpoints import merge
from gralora.cli import main
write = merge.write_side_files
def wait(*args):
    print("waiting", flush=True)
    time.sleep(60)
merge.write_side_files = wait
main(sys.argv[1:], prog_name="gralora")
"""


def test_control_c_in_a_shell_prints_no_traceback(base: Path, adapter: Path) -> None:
    command = [sys.executable, "-P", "-c", SLOW, "merge", base, adapter, base.parent / "out"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background of a shell hands down that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "the same command goes on from there" in errors


def test_warnings_are_lines(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "colour": "blue"}))
    result = _run(base, adapter, base.parent / "out")
    assert result.exit_code == 0
    assert "gralora merge: warning: the config has fields that are unknown here" in result.stderr


def test_help_shows_examples() -> None:
    result = _run("--help")
    assert "\n    gralora merge base-model style:0.7 facts:0.5 both\n" in result.stdout
