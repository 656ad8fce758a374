"""Makes `tests/injection/support` importable, and gives each test a small language model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

SUPPORT = str(Path(__file__).parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)


@pytest.fixture
def model():
    """A fresh language model of two layers, in training mode."""
    from injection_models import llama

    return llama()


@pytest.fixture
def x():
    """Token ids [2, 7]."""
    from injection_models import tokens

    return tokens()


@pytest.fixture
def mesh():
    """A device mesh of this one process."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()
