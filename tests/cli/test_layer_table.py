"""Tables of layers: every number is there, whatever the width of the terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gralora.adapters.inspection import AdapterReport, LayerReport
from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.cli.layer_table import print_layers
from gralora.nn.spec import make_spec

NAME = "model.layers.{}.self_attn.q_proj"


def _layer(in_features: int, out_features: int, **spec: object) -> LayerReport:
    settings = {"r": 64, "k": 4, "hybrid_r": 0, **spec}
    made = make_spec(
        in_features, out_features, alpha=128, dropout=0.0, use_rslora=False, **settings
    )
    return LayerReport(
        in_features=in_features,
        out_features=out_features,
        spec=made,
        dtype="float32",
        parameters=made.r * (in_features + out_features),
        norm=0.0012345678,
        block_norms=((1.0, 1234.5),),
        largest_rank=256,
        entropy_rank=187.25,
        energy_rank=211,
    )


LAYERS = {
    "small": _layer(576, 576, r=16, k=2),
    "8B": _layer(14336, 4096),
    "hybrid in a rectangle": _layer(16384, 53248, r=512, k=(16, 8), hybrid_r=64),
}
NUMBERS = {
    "small": ("576 x 576", "2", "16", "18,432", "0.001235", "1.23e+03", "256", "187.2", "211"),
    "8B": ("4096 x 14336", "4", "64", "1,179,648", "0.001235", "1.23e+03", "256", "187.2", "211"),
    "hybrid in a rectangle": (
        *("53248 x 16384", "16 x 8", "512 + 64", "35,651,584", "0.001235", "1.23e+03"),
        *("256", "187.2", "211"),
    ),
}


def _printed(case: str, width: int, *, terminal: bool = True) -> list[str]:
    report = AdapterReport(Path("a"), None, {NAME.format(0): LAYERS[case]}, 0)
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_layers(report, "a: 1 layer", console)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_name_and_numbers_are_whole(case: str, width: int) -> None:
    text = "\n".join(_printed(case, width))
    assert NAME.format(0) in text
    assert "…" not in text
    position = 0
    for number in NUMBERS[case]:
        position = text.index(number, position) + len(number)


@pytest.mark.parametrize("case", ["small", "8B"])
def test_lines_fit_into_80_columns(case: str) -> None:
    assert max(map(len, _printed(case, 80))) <= 80


def test_numbers_of_80_columns_stand_below_their_headings() -> None:
    lines = _printed("8B", 80)
    (row,) = [line for line in lines if "4096 x 14336" in line]
    heading = lines[lines.index(row) - 2]
    for word, number in [("parameters", "1,179,648"), ("max/min", "1.23e+03"), ("energy", "211")]:
        assert heading.index(word) + len(word) == row.index(number) + len(number)


def test_what_is_no_terminal_gets_one_line_for_each_layer() -> None:
    (line,) = [line for line in _printed("8B", 80, terminal=False) if NAME.format(0) in line]
    assert all(number in line for number in NUMBERS["8B"])


def test_command_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    spec = make_spec(576, 576, r=16, k=2, alpha=32, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 288, 16), torch.randn(2, 16, 288))
    write_adapter(tmp_path / "adapter", {NAME.format(0): layer})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    command = [sys.executable, "-P", "-m", "gralora", "inspect", "adapter"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    printed = b""
    try:
        while block := os.read(ours, 65536):
            printed += block
    except OSError:
        # The last process that had the terminal is gone.
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = printed.decode().splitlines()
    assert NAME.format(0) in [line.strip() for line in lines]
    assert any("576 x 576" in line and "18,432" in line for line in lines)
    assert "…" not in printed.decode()
