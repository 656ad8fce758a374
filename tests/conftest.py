"""Fixtures shared by every test: devices, seeds and poisoned memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

# cuBLAS is deterministic only with a fixed workspace, and reads this when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

SEED = 20520355


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers of the suite."""
    config.addinivalue_line(
        "markers",
        "cuda_kernels: starts a hand-written CUDA kernel of the product (needs a GPU)",
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the suite's own options."""
    parser.addoption(
        "--gpu-only",
        action="store_true",
        help="only tests that are skipped where no GPU is visible, or that a condition skips",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what `--gpu-only` does not ask for."""
    if not config.getoption("--gpu-only"):
        return
    left_out = [item for item in items if not _uses_gpu(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _uses_gpu(item)]


def _uses_gpu(item: pytest.Item) -> bool:
    """Whether it asks for the fixture `cuda`, or for a device that is one, or has `skipif`."""
    if "cuda" in getattr(item, "fixturenames", ()) or item.get_closest_marker("skipif"):
        return True
    callspec = getattr(item, "callspec", None)
    return callspec is not None and "cuda" in map(str, callspec.params.values())


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        pytest.skip("no GPU is visible" if built else "this torch is built without CUDA")
    return torch.device(name)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; `cuda` skips, with the reason, where there is none."""
    return _device(request.param)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda_kernels)])
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """As `device`, for operators that on CUDA are hand-written kernels of the product."""
    return _device(request.param)


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device; the test skips, with the reason, where there is none."""
    return _device("cuda")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers for every test, whatever ran before it."""
    torch.manual_seed(SEED)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills new uninitialised memory with NaN, so that a read before a write shows."""
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = was_filling
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
