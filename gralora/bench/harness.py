"""How a time is taken: interleaved rounds, and the median of the ratios within each round.

A machine drifts (clocks, temperature, other programs), so two times taken minutes apart say little
about each other. Here every variant is timed once in each round, in an order drawn anew, and
variants are compared within rounds alone. Nothing is averaged: one disturbed round moves a mean,
not a median.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

Call = Callable[[], object]
Timer = Callable[[], float]
# label, rounds taken, rounds in all
Progress = Callable[[str, int, int], object]


class Watch(Protocol):
    """Tells what share of the CPU others had since `start`."""

    def start(self) -> None:
        """Count from now."""

    def others(self) -> float:
        """Return the share, from 0 to 1."""


# A round in which others had more than this share of the CPU is disturbed.
_QUIET = 0.03
_MOST_ATTEMPTS = 4

# The length of a wall-time sample: enough calls that the synchronisation around them is small
# beside them, few enough that many rounds fit.
_SAMPLE_SECONDS = {"cuda": 4e-3, "cpu": 2e-2}
_MOST_CALLS = 64
_WARM_UP_CALLS = 3

# At sizes whose kernels are shorter than their launches the queue, of a thousand, stays short.
_HOST_CALLS = 32


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of a list of numbers."""

    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float

    def as_dict(self) -> dict[str, float]:
        """The five numbers by name, for JSON."""
        return asdict(self)


def spread(values: Iterable[float]) -> Spread:
    """Summarise ``values`` (at least one) without a mean; quartiles interpolate linearly."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return Spread(*ordered * 5)
    q1, median, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
    return Spread(median, q1, q3, ordered[0], ordered[-1])


def ratio_spread(samples: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Summarise ``samples[round] / reference[round]``.

    Returns:
        The numbers of `Spread`, and as ``of_minima`` the ratio of the shortest samples: where other
        programs run too, the least disturbed samples tell more than the usual ones.

    Raises:
        ValueError: the two were not taken in the same rounds.
    """
    rounds = spread(a / b for a, b in zip(samples, reference, strict=True))
    return {**rounds.as_dict(), "of_minima": min(samples) / min(reference)}


@dataclass(frozen=True)
class Rounds:
    """What `interleave` measured.

    ``samples[name][round]`` are seconds of one call; ``others[round]`` is the share of the CPU that
    other programs had meanwhile; ``discarded`` counts rounds taken again because of them.
    """

    samples: dict[str, list[float]]
    others: list[float]
    discarded: int


def interleave(
    timers: Mapping[str, Timer],
    rounds: int,
    *,
    seed: int = 0,
    watch: Watch | None = None,
    on_round: Callable[[int], object] = lambda taken: None,
) -> Rounds:
    """Run every timer once a round, in an order shuffled anew each round.

    Shuffling matters: in a fixed order each variant always inherits the caches, the allocator's
    state and the clock that the same neighbour leaves.

    Args:
        timers: each returns the seconds of one call of what it times.
        rounds: how many samples each timer gives.
        seed: of the order.
        watch: with one, a round in which other programs took more than 3% of the CPU is taken
            again, up to three times as many rounds; after that the least disturbed ones count.
        on_round: called with the number of good rounds after each, for a progress bar.
    """
    order = list(timers)
    draw = random.Random(seed)
    taken: list[tuple[float, dict[str, float]]] = []
    good = 0
    while good < rounds and len(taken) < _MOST_ATTEMPTS * rounds:
        draw.shuffle(order)
        if watch:
            watch.start()
        sample = {name: timers[name]() for name in order}
        share = watch.others() if watch else 0.0
        taken.append((share, sample))
        good += share <= _QUIET
        on_round(good)
    # A stable sort keeps the order of time among equally quiet rounds.
    kept = sorted(taken, key=lambda item: max(item[0], _QUIET))[:rounds]
    return Rounds(
        samples={name: [sample[name] for _, sample in kept] for name in timers},
        others=[share for share, _ in kept],
        discarded=len(taken) - len(kept),
    )


def synchronize(device: torch.device) -> None:
    """Wait for the device's work; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class EagerTimer:
    """Wall time of a call, launches and Python included, with the device idle before and after."""

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        """Warm up and choose how many calls make one sample.

        Args:
            calls: the same work on different operands; a sample goes round them in turn.
            device: where they run.
        """
        self._calls = calls
        self._device = device
        self._count = len(calls)
        self()
        once = self()
        target = _SAMPLE_SECONDS[device.type]
        self._count = max(1, min(_MOST_CALLS, math.ceil(target / once)))

    def __call__(self) -> float:
        """Seconds of one call."""
        synchronize(self._device)
        start = time.perf_counter()
        for index in range(self._count):
            self._calls[index % len(self._calls)]()
        synchronize(self._device)
        return (time.perf_counter() - start) / self._count


class HostTimer:
    """Time that the CPU spends in a call; what the device still has to do is not waited for.

    Calls are few enough that the queue of launches never fills up and makes the CPU wait.
    """

    def __init__(self, call: Call, device: torch.device) -> None:
        """Warm up.

        Args:
            call: starts little work, so that the device keeps up.
            device: where it runs.
        """
        self._call = call
        self._device = device
        for _ in range(_WARM_UP_CALLS):
            call()

    def __call__(self) -> float:
        """Seconds of one call."""
        synchronize(self._device)
        start = time.perf_counter()
        for _ in range(_HOST_CALLS):
            self._call()
        elapsed = time.perf_counter() - start
        synchronize(self._device)
        return elapsed / _HOST_CALLS


class CacheFlush:
    """Overwrites a buffer of twice the L2 cache, so that a replay finds no operand there."""

    def __init__(self, device: torch.device) -> None:
        """Allocate the buffer on a CUDA ``device``."""
        self._buffer = torch.randint(
            1 << 30, (2 * l2_bytes(device) // 4,), dtype=torch.int32, device=device
        )

    def __call__(self) -> None:
        """Queue the flush on the current stream."""
        self._buffer.bitwise_not_()


class GraphContext:
    """What the graphs of one comparison share: cache flush, capture stream and memory pool.

    Sharing memory is sound because the graphs are replayed one at a time and nobody reads what they
    leave behind; without it each would hold the temporaries of a whole step.
    """

    def __init__(self, device: torch.device) -> None:
        """Allocate the flush buffer on a CUDA ``device``."""
        self.flush = CacheFlush(device)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()


class GraphTimer:
    """Device time of one call, from replays of a CUDA graph that holds every call once.

    Python and the launches are left out; what the CPU does in between cannot disturb it.
    """

    def __init__(self, calls: Sequence[Call], context: GraphContext) -> None:
        """Warm up on the capture stream, so that libraries have their workspaces, and capture.

        Args:
            calls: the same work on different operands.
            context: shared with the timers it is compared with.

        Raises:
            RuntimeError: a call does what a graph cannot hold.
        """
        # The graph holds addresses, the calls the tensors that live there.
        self._calls = tuple(calls)
        self._flush = context.flush
        self._graph = torch.cuda.CUDAGraph()
        stream = context.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in itertools.islice(itertools.cycle(calls), len(calls) + _WARM_UP_CALLS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph, pool=context.pool, stream=stream):
            for call in calls:
                call()
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self()

    def __call__(self) -> float:
        """Seconds of one call."""
        # The flush runs while the CPU queues the replay behind it, so no launch gap is timed.
        self._flush()
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        milliseconds: float = self._start.elapsed_time(self._end)
        return milliseconds * 1e-3 / len(self._calls)


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache of a CUDA device."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def random_tensor(
    *shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0
) -> Tensor:
    """Normal numbers: multipliers draw less power on zeros, and then run at higher clocks."""
    return (torch.randn(*shape, device=device) * scale).to(dtype)
