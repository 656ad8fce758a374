"""Suite ``merge``: ΔW and merging into a weight, against the device's copy bandwidth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gralora.bench.agreement import TOLERANCE, dense_weight, relative_error
from gralora.bench.case import SCALING, Case, Factors, UnavailableError
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
from gralora.bench.variants import BUILDERS

# Weights taken in turn, so that none is still in the cache when its turn comes again.
_RING = 3
# Long enough that start and end of a copy vanish beside it: the device's copy bandwidth.
_LONG_COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Operation:
    """Calls that do the same work on different operands, and the bytes each must read and write."""

    name: str
    calls: Sequence[Call]
    bytes_moved: int


def run_merge(
    case: Case,
    device: torch.device,
    modes: Sequence[str],
    rounds: int,
    on_progress: Progress,
) -> dict[str, Any]:
    """Time every operation in every mode.

    Args:
        case: the weight and its adapter; the token count is not used.
        device: CPU or CUDA.
        modes: "graph" (CUDA only) and "eager".
        rounds: interleaved rounds.
        on_progress: called with a label, the samples taken and their total.

    Returns:
        The records ``timings``, ``agreement`` and ``skipped``; a share of copy is the bandwidth of
        an operation over that of a copy of the same weight in the same round.
    """
    torch.manual_seed(0)
    record: dict[str, Any] = {"case": asdict(case), "timings": [], "agreement": [], "skipped": []}
    operations = list(_operations(case, device, record))
    for mode in modes:
        context = GraphContext(device) if mode == "graph" else None
        timers: dict[str, Timer] = {
            op.name: GraphTimer(op.calls, context) if context else EagerTimer(op.calls, device)
            for op in operations
        }
        measured = interleave(
            timers,
            rounds,
            watch=CpuWatch() if device.type == "cpu" else None,
            on_round=functools.partial(_report, on_progress, mode, rounds),
        )
        record["timings"].extend(_timing_records(operations, measured, mode))
    return record


def _operations(case: Case, device: torch.device, record: dict[str, Any]) -> Iterator[Operation]:
    factors = Factors.draw(case, device)
    weights = [_random_weight(case, device) for _ in range(_RING)]
    targets = [torch.empty_like(weight) for weight in weights]
    weight_bytes = weights[0].nbytes
    yield Operation(
        "copy",
        [functools.partial(t.copy_, w) for t, w in zip(targets, weights, strict=True)],
        2 * weight_bytes,
    )
    if device.type == "cuda":
        long = random_tensor(_LONG_COPY_BYTES // 4, dtype=torch.float32, device=device)
        copy = functools.partial(torch.empty_like(long).copy_, long)
        yield Operation("copy of 1 GiB", [copy], 2 * _LONG_COPY_BYTES)
    yield from _gralora_operations(case, factors, weights, record)
    yield from _peft_operations(case, factors, device, record)


def _gralora_operations(
    case: Case, factors: Factors, weights: Sequence[Tensor], record: dict[str, Any]
) -> Iterator[Operation]:
    try:
        import gralora  # noqa: F401 - registers the operators
    except ImportError as error:
        _skip(record, "gralora", f"gralora cannot be imported: {error}")
        return
    dtypes = {"gralora merge_": case.torch_dtype}
    if case.torch_dtype.itemsize == 2:
        dtypes["gralora merge_, fp32 factors"] = torch.float32
    for name, dtype in dtypes.items():
        A, B = factors.A.to(dtype), factors.B.to(dtype)
        merge = functools.partial(_merge, A, B)
        difference = _merge_error(merge, weights[0], A, B)
        record["agreement"].append({"variant": name, "errors": {"weight": difference}})
        if not difference <= TOLERANCE[case.dtype]:
            _skip(record, name, f"wrong result, relative error {difference}")
            continue
        # Signs alternate over the ring, so that the weights stay what they were.
        calls = [functools.partial(merge, w, s) for s in (1.0, -1.0) for w in weights]
        yield Operation(name, calls, 2 * weights[0].nbytes)
    A, B = factors.A.to(case.torch_dtype), factors.B.to(case.torch_dtype)
    yield Operation(
        "gralora delta_weight",
        [lambda: torch.ops.gralora.delta_weight(A, B, None, None, scaling=SCALING)],
        weights[0].nbytes,
    )


def _merge(A: Tensor, B: Tensor, weight: Tensor, sign: float) -> None:
    torch.ops.gralora.merge_(weight, A, B, None, None, scaling=SCALING, sign=sign)


def _merge_error(
    merge: Callable[[Tensor, float], None], weight: Tensor, A: Tensor, B: Tensor
) -> float:
    merged = weight.clone()
    merge(merged, 1.0)
    return relative_error(merged, dense_weight(weight, A.double(), B.double()))


def _peft_operations(
    case: Case, factors: Factors, device: torch.device, record: dict[str, Any]
) -> Iterator[Operation]:
    for name, label in (
        ("peft_gralora", "PEFT merge"),
        ("peft_gralora_fp32", "PEFT merge, fp32 factors"),
    ):
        linears = [_linear(_random_weight(case, device)) for _ in range(_RING)]
        try:
            layers: list[Any] = list(BUILDERS[name](case, linears, factors).modules)
        except UnavailableError as reason:
            _skip(record, label, str(reason))
            continue
        calls = [functools.partial(_peft_merge, layer) for layer in layers]
        yield Operation(label, calls, 2 * linears[0].weight.nbytes)


def _peft_merge(layer: Any) -> None:
    layer.merge()
    # PEFT refuses to merge what it has noted as merged; here each call must do the work.
    layer.merged_adapters.clear()


def _random_weight(case: Case, device: torch.device) -> Tensor:
    return random_tensor(
        case.out_features,
        case.in_features,
        dtype=case.torch_dtype,
        device=device,
        scale=(3 * case.in_features) ** -0.5,
    )


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _timing_records(
    operations: Sequence[Operation], rounds: Rounds, mode: str
) -> Iterator[dict[str, Any]]:
    samples = rounds.samples
    copy = operations[0]
    for operation in operations:
        own = samples[operation.name]
        seconds = spread(own)
        scale = operation.bytes_moved / copy.bytes_moved
        yield {
            "variant": operation.name,
            "mode": mode,
            "seconds": seconds.as_dict(),
            "gb_per_s": operation.bytes_moved / seconds.median * 1e-9,
            "share_of_copy": ratio_spread([scale * second for second in samples[copy.name]], own),
            "samples": own,
            "others_cpu_share": rounds.others,
            "rounds_discarded": rounds.discarded,
        }


def _report(on_progress: Progress, mode: str, rounds: int, taken: int) -> None:
    on_progress(f"merge, {mode}", taken, rounds)


def _skip(record: dict[str, Any], name: str, reason: str) -> None:
    record["skipped"].append({"variant": name, "reason": reason})
