"""Saving and loading under FSDP2: the same files as from one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from storage_models import llama, our_model
from storage_sharded_worker import SETTINGS

from gralora.storage.adapter_files import save_adapter
from gralora.storage.state_dict import adapter_state_dict

WORKER = Path(__file__).parent / "support" / "storage_sharded_worker.py"
WORLD_SIZE = 2

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks left."""
    path = tmp_path_factory.mktemp("sharded")
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD_SIZE), str(path)],
            # One thread each, or the ranks wait for one another's.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=180)
        assert worker.returncode == 0, errors[-3000:]
    return path


@pytest.fixture(params=range(WORLD_SIZE), ids=lambda rank: f"rank {rank}")
def result(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """What one rank saw."""
    return torch.load(folder / f"rank{request.param}.pt")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_the_files_are_those_of_one_process(file: str, folder: Path, tmp_path: Path) -> None:
    save_adapter(our_model(llama(attention_bias=True), **SETTINGS), tmp_path)
    assert (folder / "adapter" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_every_rank_gets_the_whole_tensors(result: dict[str, Any]) -> None:
    expected = adapter_state_dict(our_model(llama(attention_bias=True), **SETTINGS))
    assert result["state"].keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(result["state"][key], value), key


def test_every_rank_finds_the_files_after_its_call(result: dict[str, Any]) -> None:
    assert result["seen"]


def test_tensors_are_loaded_into_the_shards_in_place(result: dict[str, Any]) -> None:
    assert result["kept"]
    assert result["after"].keys() == result["state"].keys()
    assert all((value == 0.5).all() for value in result["after"].values())


def test_a_failure_of_rank_0_reaches_every_rank(result: dict[str, Any]) -> None:
    assert "directory must be a folder" in result["failure"]
