"""Random sizes, dtypes, strides, alignments and dropout on every path, against the reference.

A forced path runs and is right, or says why it cannot; what it can run by its documented rules it
must run. What is not written would be NaN: the memory of a first call is filled with it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_configurations import configurations
from ops_paths import every_path, on_path
from ops_poison import on_poisoned_memory

pytestmark = pytest.mark.usefixtures("device")
operators = pytest.mark.parametrize("operator", ["linear", "add"])

REFUSAL = re.compile(
    r'gralora: the path "sm[89]0" is forced, yet the kernel of \w+ cannot run: \w+'
)
MOST_TOKENS = {"cpu": 200, "cuda": 3000}

a_few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@every_path
@operators
@a_few
@given(data=st.data())
def test_agrees_with_the_reference_or_says_why_it_cannot_run(
    path: Any, operator: str, data: st.DataObject, device: torch.device
) -> None:
    if device.type == "cpu" and path is not None:
        pytest.skip("a forced path concerns CUDA alone")
    case = data.draw(configurations(operator, MOST_TOKENS[device.type]))
    operands = case.operands(device)
    try:
        actual = on_path(path, lambda: on_poisoned_memory(lambda: case.run(operands)))
    except RuntimeError as error:
        repeats = path == "sm90" and "repeat" in str(error)
        may_refuse = repeats or not case.aligned
        if path not in ("sm80", "sm90") or not may_refuse or not REFUSAL.match(str(error)):
            raise
        return
    case.assert_agreement(actual, operands)
