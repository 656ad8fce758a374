"""Makes `tests/accelerate/support` importable, and skips where PEFT is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("peft.tuners.gralora.layer", reason="PEFT with GraLoRA is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

SUPPORT = str(Path(__file__).parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)
