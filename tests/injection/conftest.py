"""Makes `tests/injection/support` importable, and gives each test a small language model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
