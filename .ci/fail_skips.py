"""pytest plugin for CI, where every package is there: a test that misses one fails.

Elsewhere such a test skips and says so. In CI that would hide it: `-p fail_skips`, with this folder
on PYTHONPATH. What skips for want of a GPU goes on doing so; in the folders of `_STRICT`, whose
tests take examples and documents, nothing else may skip.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

_STRICT = re.compile(r"(^|/)tests/(docs|examples)/")
_OF_THE_MACHINE = re.compile(r"\bGPU|\bCUDA")


def _forbidden(call: pytest.CallInfo[Any] | None, path: str, reason: str) -> bool:
    frames = call.excinfo.traceback if call is not None and call.excinfo is not None else []
    if any(frame.name == "importorskip" for frame in frames):
        return True
    return bool(_STRICT.search(path)) and not _OF_THE_MACHINE.search(reason)


def _as_failure(report: Any, call: pytest.CallInfo[Any] | None) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    path, line, reason = report.longrepr
    if _forbidden(call, report.nodeid, str(reason)):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: must not skip in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Iterator[pytest.TestReport]:
    """Make failures of tests that skip while they are set up or run."""
    report: pytest.TestReport = yield
    _as_failure(report, call)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[pytest.CollectReport]:
    """Make failures of modules that skip while they are imported."""
    report: pytest.CollectReport = yield
    _as_failure(report, getattr(report, "call", None))
    return report
