"""Makes `tests/experts/support` importable, and skips where no model has fused experts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers.integrations.moe", reason="needs transformers 5")

SUPPORT = str(Path(__file__).parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)
