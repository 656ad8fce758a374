"""The CPU time of calls."""

import json
from pathlib import Path
from typing import Any

import pytest
import run
import torch

from gralora.bench.harness import HostTimer


def test_call_is_made_many_times() -> None:
    calls: list[int] = []
    timer = HostTimer(lambda: calls.append(1), torch.device("cpu"))
    warm_up = len(calls)
    timer()
    assert len(calls) - warm_up > 10


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short run of two variants."""
    path: Path = tmp_path_factory.mktemp("results") / "host.json"
    options = ["--device", "cpu", "--rounds", "9", "--variants", "base,gralora,gralora_functional"]
    assert run.main(["host", *options, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_pass_is_timed(record: dict[str, Any]) -> None:
    found = {(t["variant"], t["pass"]) for t in record["timings"]}
    names = ("base", "gralora", "gralora_functional")
    assert found == {(v, p) for v in names for p in ("inference", "forward", "step")}


def test_step_takes_longer_than_its_forward(record: dict[str, Any]) -> None:
    found = {(t["variant"], t["pass"]): t["seconds"]["median"] for t in record["timings"]}
    assert found["gralora", "step"] > found["gralora", "forward"]


def test_result_can_be_shown(record: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "host.json"
    path.write_text(json.dumps(record))
    assert run.main(["show", str(path)]) == 0
    assert "16→16, T 1, r 4, k 2, fp32: CPU time of a call" in capsys.readouterr().out
