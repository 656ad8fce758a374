"""How much memory something takes at its peak, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
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
    _give_back_what_is_free()
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        pytest.skip("the peak of memory cannot be reset here")
    before = _kilobytes("VmRSS")
    work()
    return 1024 * max(0, _kilobytes("VmHWM") - before)


def _give_back_what_is_free() -> None:
    """Without it, work in memory that earlier work has freed would seem to take none."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
