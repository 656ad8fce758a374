"""Makes the benchmark scripts importable under the plain names they use among themselves."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gralora.bench import harness

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """What the command line says of arguments that it does not take."""

    def refuse(arguments: list[str]) -> str:
        import run

        with pytest.raises(SystemExit, match="2"):
            run.main(arguments)
        return capsys.readouterr().err

    return refuse


@pytest.fixture(autouse=True, scope="module")
def short_samples() -> Iterator[None]:
    """Samples of a few calls on one thread: how long they take, no test here asks.

    Two threads wait for each other where the machine is busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(harness._SAMPLE_SECONDS, "cpu", 1e-4)
        yield
    torch.set_num_threads(threads)
