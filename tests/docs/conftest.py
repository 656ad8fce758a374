"""Makes `tests/docs/support` and what builds pages importable."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (str(HERE / "support"), str(HERE.parents[1] / "docs")):
    if folder not in sys.path:
        sys.path.insert(0, folder)
