"""How much memory something takes at its peak, as the kernel counts it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def growth(work: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process exceeds, at most, what it is now."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        pytest.skip("the peak of memory cannot be reset here")
    before = _kilobytes("VmRSS")
    work()
    return 1024 * max(0, _kilobytes("VmHWM") - before)
