"""Noticing that other programs run."""

import subprocess
import sys
import time

import pytest

from gralora.bench import disturbance
from gralora.bench.disturbance import CpuWatch


class _Machine:
    """Two cores whose clocks a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.own = self.all = 100.0
        monkeypatch.setattr(disturbance.os, "cpu_count", lambda: 2)
        monkeypatch.setattr(disturbance.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(disturbance.time, "process_time", lambda: self.own)
        monkeypatch.setattr(disturbance, "_busy_seconds", lambda: self.all)
        monkeypatch.setattr(disturbance, "_tick_seconds", lambda: 0.01)


def test_own_threads_are_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Machine(monkeypatch)
    watch = CpuWatch()
    machine.wall, machine.own, machine.all = 101.0, 102.0, 102.0
    assert watch.others() == 0.0


def test_share_is_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Machine(monkeypatch)
    watch = CpuWatch()
    machine.wall, machine.own, machine.all = 101.0, 101.0, 102.02
    assert watch.others() == pytest.approx(0.5)


def test_one_tick_a_core_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Machine(monkeypatch)
    watch = CpuWatch()
    machine.wall, machine.own, machine.all = 100.1, 100.1, 100.12
    assert watch.others() == pytest.approx(0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the time of all cores")
def test_busy_neighbour_is_seen() -> None:
    spin = "print(1, flush=True)\nwhile True: pass"
    command = [sys.executable, "-c", spin]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        watch = CpuWatch()
        time.sleep(0.5)
        share = watch.others()
        neighbour.kill()
    assert share > 0
