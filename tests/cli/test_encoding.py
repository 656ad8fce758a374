"""Terminals and pipes that do not speak UTF-8: words are printed, with escapes where they must."""

from __future__ import annotations

import json

import pytest
import torch

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.nn.spec import make_spec


@pytest.mark.parametrize(
    ("encoding", "printed"), [("latin-1", r"\u0394W"), ("cp1252", r"\u0394W"), ("utf-8", "ΔW")]
)
def test_help_is_printed_in_any_encoding(encoding, printed, python):
    result = python("-m", "gralora", "inspect", "--help", env={"PYTHONIOENCODING": encoding})
    assert (result.returncode, result.stderr) == (0, "")
    assert printed in result.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_table_is_printed_in_any_encoding(encoding, python, tmp_path):
    spec = make_spec(8, 8, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    write_adapter(tmp_path / "adapter", {"layers.0.up": layer})
    command = ("-m", "gralora", "inspect", str(tmp_path / "adapter"))
    result = python(*command, env={"PYTHONIOENCODING": encoding})
    assert (result.returncode, result.stderr) == (0, "")
    assert "layers.0.up" in result.stdout
    found = python(*command, "--json", env={"PYTHONIOENCODING": encoding})
    assert json.loads(found.stdout)["layers"].keys() == {"layers.0.up"}
