"""Plugin for a run of PEFT's tests: records what each came to, and accelerates every model.

It is loaded into a pytest of its own by `run.py` and knows nothing of the tests but the classes of
the configurations that they are parametrised with.
"""

from __future__ import annotations

import functools
import random
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import huggingface_hub.constants
import numpy
import pytest
import torch
from peft import GraloraConfig, LoraConfig, PeftConfig, PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft_suite_records import CRASHED, Record, append, read

from gralora import _C

Result = TypeVar("Result")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gralora")
    group.addoption("--records", type=Path, required=True, help="file that outcomes are added to")
    group.addoption("--skip-ids", type=Path, help="file with ids of tests to leave out")
    group.addoption("--at-most", type=int, default=500, help="tests in this process")
    group.addoption("--seconds", type=int, default=120, help="time of one test")
    group.addoption("--accelerate", action="store_true", help="accelerate every PEFT model")


def pytest_configure(config: pytest.Config) -> None:
    # PEFT's tests switch to online for their first use of a model, which costs a minute of retries.
    huggingface_hub.constants.is_offline_mode = lambda: True
    calls = _count_operators()
    if config.option.accelerate:
        _accelerate_every_model()
    config.pluginmanager.register(Recorder(config, calls))


class Calls:
    """How often gralora's layers were called from Python."""

    def __init__(self) -> None:
        self.count = 0

    def counting(self, operator: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(operator)
        def counted(*args: Any) -> Result:
            self.count += 1
            return operator(*args)

        return counted


def _count_operators() -> Calls:
    """Count calls of the two layers; those that a compiled graph makes are not seen."""
    calls = Calls()
    for name in ("linear", "add"):
        setattr(_C, name, calls.counting(getattr(_C, name)))
    return calls


def _accelerate_every_model() -> None:
    """Accelerate whatever gets an adapter, as soon as the outermost call that brought it ends."""
    from gralora.integrations.peft import accelerate

    depth = 0

    def wrapped(
        method: Callable[..., Result], model: Callable[[Any], torch.nn.Module]
    ) -> Callable[..., Result]:
        @functools.wraps(method)
        def followed(self: Any, *args: Any, **kwargs: Any) -> Result:
            nonlocal depth
            depth += 1
            try:
                result = method(self, *args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                accelerate(model(self))
            return result

        return followed

    for owner in (PeftModel, PeftMixedModel):
        for kind in _with_subclasses(owner):
            for name in {"__init__", "add_adapter", "load_adapter"} & vars(kind).keys():
                setattr(kind, name, wrapped(vars(kind)[name], lambda model: model))
    # Users of `inject_adapter_in_model` never see the tuner, only the model inside.
    BaseTuner.inject_adapter = wrapped(BaseTuner.inject_adapter, lambda tuner: tuner.model)


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    for below in kind.__subclasses__():
        yield from _with_subclasses(below)


def _concerns_lora(item: pytest.Item) -> bool:
    """Whether a test is about LoRA, GraLoRA or no tuner in particular."""
    values = getattr(item, "callspec", None)
    configurations = [
        value
        for value in (values.params.values() if values else ())
        if isinstance(value, type) and issubclass(value, PeftConfig)
    ]
    return not configurations or any(kind in (LoraConfig, GraloraConfig) for kind in configurations)


class Recorder:
    """Chooses the tests of this process, seeds and times each, and writes down its outcome."""

    def __init__(self, config: pytest.Config, calls: Calls) -> None:
        self._records: Path = config.option.records
        self._at_most: int = config.option.at_most
        self._seconds: int = config.option.seconds
        skip: Path | None = config.option.skip_ids
        self._left_out = set(skip.read_text(encoding="utf-8").splitlines()) if skip else set()
        self._calls = calls
        self._before = 0
        self._reports: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        done = {record.test for record in read(self._records)} | self._left_out
        waiting = [item for item in items if item.nodeid not in done and _concerns_lora(item)]
        chosen = waiting[: self._at_most]
        append(self._records, {"left": len(waiting) - len(chosen)})
        kept = set(map(id, chosen))
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        items[:] = chosen

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        append(self._records, Record(nodeid, CRASHED, "the process ended within this test"))
        self._reports = []
        self._before = self._calls.count

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)

        def stop(number: int, frame: FrameType | None) -> None:
            pytest.fail(f"took longer than {self._seconds} s")

        previous = signal.signal(signal.SIGALRM, stop)
        signal.alarm(self._seconds)
        try:
            return (yield)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcome, message = _summary(self._reports)
        append(self._records, Record(nodeid, outcome, message, self._calls.count - self._before))


def _summary(reports: list[pytest.TestReport]) -> tuple[str, str]:
    """What set-up, call and tear-down of a test come to together, and why."""
    for report in reports:
        expected = hasattr(report, "wasxfail")
        if report.failed:
            return "failed", f"{report.when}: {_reason(report)}"
        if report.skipped:
            return ("xfailed" if expected else "skipped"), _reason(report)
        if expected:
            return "xpassed", ""
    return "passed", ""


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr
    crash = getattr(text, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    return str(text[2]) if isinstance(text, tuple) else str(text)
