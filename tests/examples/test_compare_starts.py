"""compare_starts.py: run on a tiny model, and what it makes of the results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def script(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a tiny model in the place of SmolLM2."""
    pytest.importorskip("rich")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.delitem(sys.modules, "compare_starts", raising=False)
    import compare_starts

    def load(weights: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype).to(device).eval()
        return model, AutoTokenizer.from_pretrained(weights)

    monkeypatch.setattr(compare_starts.smollm2, "fetch", lambda cache: tiny_llama)
    monkeypatch.setattr(compare_starts.smollm2, "load", load)
    return compare_starts


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_way_is_measured_and_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "starts.json"
    monkeypatch.setattr(sys, "argv", ["compare_starts.py", "-r", "8", "--out", str(out)])
    script.main()
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [(case["init_weights"], case["k"]) for case in result["cases"]] == list(script.CASES)
    for case in result["cases"]:
        takes = case["init_weights"].startswith("pissa")
        assert (case["taken_share"] > 0.1) is takes
        assert (0 < case["largest_change"] < 1e-4) if takes else case["largest_change"] == 0
    assert script.markdown(result) in capsys.readouterr().out
