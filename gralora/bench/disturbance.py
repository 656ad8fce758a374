"""How much of the CPU other programs took while something was timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class CpuWatch:
    """Measures the share of all cores that went to other processes since `start`.

    Where /proc/stat does not exist the share is always 0: nothing is known, nothing is rejected.
    """

    def __init__(self) -> None:
        """Begin watching."""
        self._cores = os.cpu_count() or 1
        self.start()

    def start(self) -> None:
        """Count from now."""
        self._wall = time.perf_counter()
        self._own = time.process_time()
        self._all = _busy_seconds()

    def others(self) -> float:
        """Share of the cores that others had, from 0 to 1.

        The kernel counts in ticks, so up to one on each core is not held against anybody.
        """
        elapsed = time.perf_counter() - self._wall
        own = time.process_time() - self._own
        foreign = _busy_seconds() - self._all - own - self._cores * _tick_seconds()
        return min(1.0, max(0.0, foreign / (elapsed * self._cores)))


def _tick_seconds() -> float:
    return 1 / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """Seconds that all cores together were neither idle nor waiting for a disk."""
    try:
        first = _STAT.read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return time.process_time()
    user, nice, system, _idle, _wait, *interrupts_and_steal = map(int, first.split()[1:9])
    return (user + nice + system + sum(interrupts_and_steal)) * _tick_seconds()
