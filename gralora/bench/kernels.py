"""Suite ``kernels``: each step of an adapter against the floor of what it must move and multiply.

In every round each step is timed once, and so are its yardsticks: a copy on the device that moves
as many bytes, a long copy, and a square product that shows the matrix units' rate.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gralora.bench.case import DTYPES, Case
from gralora.bench.disturbance import CpuWatch
from gralora.bench.harness import (
    Call,
    EagerTimer,
    GraphContext,
    GraphTimer,
    Progress,
    Rounds,
    Timer,
    interleave,
    random_tensor,
    ratio_spread,
    spread,
)
from gralora.bench.kernel_operations import Operation, operations, ring_size

# The chooser's own way, by the name that the tables give it.
CHOSEN = "chosen"
PATHS = (CHOSEN, "aten", "sm80", "sm90")

# Long enough that start and end vanish beside the rest.
_LONG_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
_SQUARE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Settings:
    """How the cases are run: ``paths`` of `PATHS`, ``names`` of steps."""

    device: torch.device
    names: Sequence[str]
    paths: Sequence[str]
    mode: str
    rounds: int


@dataclass(frozen=True)
class _Timed:
    """A step on one path, under the name of its timer."""

    operation: Operation
    path: str

    @property
    def name(self) -> str:
        return f"{self.operation.name}, {self.path}"


class Recorder:
    """Collects records of all cases."""

    def __init__(self, on_progress: Progress) -> None:
        """``on_progress(label, done, total)`` is called as samples come in."""
        self.timings: list[dict[str, Any]] = []
        self.yardsticks: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self.on_progress = on_progress

    def as_dict(self) -> dict[str, Any]:
        """Everything collected so far, for JSON."""
        return {
            "timings": self.timings,
            "yardsticks": self.yardsticks,
            "skipped": self.skipped,
        }


def run_case(case: Case, settings: Settings, recorder: Recorder) -> None:
    """Time the steps of a case on every path, with their yardsticks."""
    torch.manual_seed(0)
    device = settings.device
    context = GraphContext(device) if settings.mode == "graph" else None

    def timer(calls: Sequence[Call]) -> Timer:
        return GraphTimer(calls, context) if context else EagerTimer(calls, device)

    timers: dict[str, Timer] = {}
    timed: list[_Timed] = []
    for operation in operations(case, device, settings.names):
        for path in settings.paths if operation.has_paths else (CHOSEN,):
            item = _Timed(operation, path)
            try:
                with _forced(path):
                    built = timer(_held(operation.calls))
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                recorder.skipped.append(
                    {"case": asdict(case), "variant": item.name, "reason": reason}
                )
                continue
            timers[item.name] = _on_path(built, path)
            timed.append(item)
    for size in {item.operation.bytes_moved for item in timed}:
        timers[_copy_name(size)] = timer(list(_copies(size, device)))
    long_bytes = 2 * _LONG_COPY_BYTES[device.type]
    timers["long copy"] = timer(list(_copies(long_bytes, device, sets=1)))
    timers["square product"] = timer([_square_product(case.dtype, device)])

    rounds = interleave(
        timers,
        settings.rounds,
        watch=CpuWatch() if device.type == "cpu" else None,
        on_round=lambda taken: recorder.on_progress(
            f"{case.text}, {settings.mode}", taken, settings.rounds
        ),
    )
    rates = _Rates(rounds, long_bytes, 2 * _SQUARE[device.type] ** 3)
    recorder.yardsticks.append({"case": asdict(case), **rates.as_dict()})
    recorder.timings.extend(_records(case, timed, rounds, rates, settings.mode))


@contextlib.contextmanager
def _forced(path: str) -> Iterator[None]:
    from gralora.kernels import Path, forced

    with forced(None if path == CHOSEN else cast(Path, path)):
        yield


def _on_path(timer: Timer, path: str) -> Timer:
    """Time under the path too: eager calls choose when they run, graphs when they were captured."""

    def timed() -> float:
        with _forced(path):
            return timer()

    return timed


def _held(calls: Sequence[Call]) -> list[Call]:
    """The calls, each keeping its last result.

    Otherwise the next call's result would take over the memory, and find it in the cache.
    """
    results: list[object] = [None] * len(calls)

    def hold(index: int, call: Call) -> None:
        results[index] = call()

    return [functools.partial(hold, index, call) for index, call in enumerate(calls)]


def _copy_name(bytes_moved: int) -> str:
    return f"copy of {bytes_moved}"


def _copies(bytes_moved: int, device: torch.device, sets: int | None = None) -> Iterator[Call]:
    """Copies that read and write ``bytes_moved`` together, on a ring as the steps have it."""
    for _ in range(sets or ring_size(bytes_moved, device)):
        source = random_tensor(max(1, bytes_moved // 4), dtype=torch.bfloat16, device=device)
        yield functools.partial(torch.empty_like(source).copy_, source)


def _square_product(dtype: str, device: torch.device) -> Call:
    size = _SQUARE[device.type]
    left, right = (random_tensor(size, size, dtype=DTYPES[dtype], device=device) for _ in range(2))
    out: Tensor = torch.empty_like(left)
    return functools.partial(torch.mm, left, right, out=out)


class _Rates:
    """What the device does at best, of the same rounds as the steps."""

    def __init__(self, rounds: Rounds, long_bytes: int, square_flop: int) -> None:
        self.long_copy = rounds.samples["long copy"]
        self.square = rounds.samples["square product"]
        self.long_bytes = long_bytes
        self.square_flop = square_flop

    def floors(self, operation: Operation) -> list[float]:
        """In each round, seconds that the bytes or the products take at these rates alone."""
        return [
            max(
                operation.bytes_moved / self.long_bytes * copy,
                operation.flop / self.square_flop * square,
            )
            for copy, square in zip(self.long_copy, self.square, strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Both with their samples, for JSON."""
        copy, square = spread(self.long_copy), spread(self.square)
        return {
            "long_copy": {
                "bytes_moved": self.long_bytes,
                "seconds": copy.as_dict(),
                "gb_per_s": self.long_bytes / copy.median * 1e-9,
                "samples": self.long_copy,
            },
            "square_product": {
                "flop": self.square_flop,
                "seconds": square.as_dict(),
                "tflop_per_s": self.square_flop / square.median * 1e-12,
                "samples": self.square,
            },
        }


def _records(
    case: Case, timed: Sequence[_Timed], rounds: Rounds, rates: _Rates, mode: str
) -> Iterator[dict[str, Any]]:
    for item in timed:
        operation = item.operation
        own = rounds.samples[item.name]
        copy = rounds.samples[_copy_name(operation.bytes_moved)]
        seconds = spread(own)
        square = [operation.flop / rates.square_flop * second for second in rates.square]
        yield {
            "case": asdict(case),
            "variant": operation.name,
            "path": item.path,
            "mode": mode,
            "seconds": seconds.as_dict(),
            "bytes_moved": operation.bytes_moved,
            "flop": operation.flop,
            "gb_per_s": operation.bytes_moved / seconds.median * 1e-9,
            "tflop_per_s": operation.flop / seconds.median * 1e-12,
            "share_of_copy": ratio_spread(copy, own),
            "share_of_matrix_rate": ratio_spread(square, own),
            "share_of_floor": ratio_spread(rates.floors(operation), own),
            "copy_seconds": spread(copy).as_dict(),
            "samples": own,
            "others_cpu_share": rounds.others,
            "rounds_discarded": rounds.discarded,
        }
