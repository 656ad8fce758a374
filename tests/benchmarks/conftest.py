"""Makes the benchmark scripts importable under the plain names they use among themselves."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gralora.bench import harness

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))


@pytest.fixture(autouse=True, scope="session")
def short_samples() -> Iterator[None]:
    """Samples of a few calls: what a time is, no test here asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(harness._SAMPLE_SECONDS, "cpu", 1e-4)
        yield
