"""Random layers, and processes that train together, for the integration tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn

import gralora.kernels
from gralora import _C

WORKERS = Path(__file__).parent / "workers"
PROCESS_SECONDS = 120

# Test modules have no package under importlib mode; they and the processes share one model.
if str(WORKERS) not in sys.path:
    sys.path.insert(0, str(WORKERS))


def _randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "_A." in name or "_B." in name:
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                parameter.copy_(0.3 * values)
    return module


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    """``randomise(module, seed=0)``: gives every adapter inside an update that is not zero."""
    return _randomise


@pytest.fixture
def forced() -> Callable[[str | None], AbstractContextManager[None]]:
    """``gralora.kernels.forced``; skips where the GPU has no such path."""

    def force(path: str | None) -> AbstractContextManager[None]:
        built = "90a" in _C.build_info()["cuda_architectures"]
        if path == "sm90" and not (built and torch.cuda.get_device_capability() == (9, 0)):
            pytest.skip("no kernels of compute capability 9.0a run on this GPU")
        return gralora.kernels.forced(path)

    return force


@pytest.fixture(scope="session")
def run_workers(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict]]:
    """``run_workers(script, world_size=2)``: what each rank saved, in rank order.

    Every process gets its rank, the world size, the rendezvous file and its output file. The
    first failure is raised with the text that the process left.
    """

    def run(script: str, world_size: int = 2) -> list[dict]:
        folder = tmp_path_factory.mktemp("workers")
        outputs = [folder / f"rank{rank}.pt" for rank in range(world_size)]
        rendezvous = folder / "rendezvous"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(WORKERS / script),
                    str(rank),
                    str(world_size),
                    str(rendezvous),
                    str(output),
                ],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, output in enumerate(outputs)
        ]
        try:
            texts = [process.communicate(timeout=PROCESS_SECONDS)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for rank, (process, text) in enumerate(zip(processes, texts, strict=True)):
            assert process.returncode == 0, f"rank {rank} of {script} failed:\n{text}"
        return [torch.load(output, weights_only=True) for output in outputs]

    return run
