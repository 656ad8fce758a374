"""GPU memory for tests that need much of it, however many processes run tests beside this one."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

LOCK = Path(tempfile.gettempdir()) / "gralora-tests-gpu-memory.lock"


@contextmanager
def gpu_memory(gibibytes: int) -> Iterator[None]:
    """Waits for its turn, then skips the test unless so much is free; torch's cache is empty."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < gibibytes << 30:
            pytest.skip(f"{free >> 30} GiB of GPU memory are free, {gibibytes} are needed")
        try:
            yield
        finally:
            torch.cuda.empty_cache()
