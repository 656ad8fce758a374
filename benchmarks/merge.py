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
    Rounds,
    Timer,
    interleave,
    random_tensor,
    ratio_spread,
    spread,
)
from gralora.bench.suite import Context, Record
from gralora.bench.variants import BUILDERS

# The names that options give the operations, and those that the results give them. The copies run
# whatever is asked for: they are what the others are compared with.
OPERATIONS = {
    "gralora": "gralora merge_",
    "gralora_fp32": "gralora merge_, fp32 factors",
    "delta_weight": "gralora delta_weight",
    "peft_gralora": "PEFT merge",
    "peft_gralora_fp32": "PEFT merge, fp32 factors",
}

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
    cases: Sequence[Case], modes: Sequence[str], variants: Sequence[str], context: Context
) -> Record:
    """Time every operation on every weight in every mode.

    Args:
        cases: the weights and their adapters; token counts are not used.
        modes: "graph" (CUDA only) and "eager".
        variants: which of `OPERATIONS`.
        context: device, rounds, and where progress and results go.

    Returns:
        The records ``timings``, ``agreement`` and ``skipped``; a share of copy is the bandwidth of
        an operation over that of a copy of the same weight in the same round.
    """
    record: Record = {"timings": [], "agreement": [], "skipped": []}
    for case in cases:
        _run_case(case, modes, variants, context, record)
        context.save(record)
    return record


def _run_case(
    case: Case,
    modes: Sequence[str],
    variants: Sequence[str],
    context: Context,
    record: Record,
) -> None:
    torch.manual_seed(0)
    device = context.device
    operations = list(_operations(case, device, variants, record))
    for mode in modes:
        graphs = GraphContext(device) if mode == "graph" else None
        timers: dict[str, Timer] = {
            op.name: GraphTimer(op.calls, graphs) if graphs else EagerTimer(op.calls, device)
            for op in operations
        }
        label = f"merge, {case.in_features}x{case.out_features}, {mode}"
        measured = interleave(
            timers,
            context.rounds,
            watch=CpuWatch() if device.type == "cpu" else None,
            on_round=functools.partial(_report, context, label),
        )
        record["timings"].extend(_timing_records(case, operations, measured, mode))


def _operations(
    case: Case, device: torch.device, variants: Sequence[str], record: Record
) -> Iterator[Operation]:
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
    yield from _gralora_operations(case, factors, weights, variants, record)
    yield from _peft_operations(case, factors, device, variants, record)


def _gralora_operations(
    case: Case,
    factors: Factors,
    weights: Sequence[Tensor],
    variants: Sequence[str],
    record: Record,
) -> Iterator[Operation]:
    half = case.torch_dtype.itemsize == 2
    for variant, dtype in (("gralora", case.torch_dtype), ("gralora_fp32", torch.float32)):
        if variant not in variants:
            continue
        name = OPERATIONS[variant]
        if variant == "gralora_fp32" and not half:
            _skip(record, name, f"fp32 factors are the usual ones beside {case.dtype}")
            continue
        A, B = factors.A.to(dtype), factors.B.to(dtype)
        merge = functools.partial(_merge, A, B)
        difference = _merge_error(merge, weights[0], A, B)
        record["agreement"].append(
            {"case": asdict(case), "variant": name, "errors": {"weight": difference}}
        )
        if not difference <= TOLERANCE[case.dtype]:
            _skip(record, name, f"wrong result, relative error {difference}")
            continue
        # Signs alternate over the ring, so that the weights stay what they were.
        calls = [functools.partial(merge, w, s) for s in (1.0, -1.0) for w in weights]
        yield Operation(name, calls, 2 * weights[0].nbytes)
    if "delta_weight" not in variants:
        return
    A, B = factors.A.to(case.torch_dtype), factors.B.to(case.torch_dtype)
    yield Operation(
        OPERATIONS["delta_weight"],
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
    case: Case,
    factors: Factors,
    device: torch.device,
    variants: Sequence[str],
    record: Record,
) -> Iterator[Operation]:
    for name in ("peft_gralora", "peft_gralora_fp32"):
        if name not in variants:
            continue
        label = OPERATIONS[name]
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
    case: Case, operations: Sequence[Operation], rounds: Rounds, mode: str
) -> Iterator[Record]:
    samples = rounds.samples
    copy = operations[0]
    for operation in operations:
        own = samples[operation.name]
        seconds = spread(own)
        scale = operation.bytes_moved / copy.bytes_moved
        yield {
            "case": asdict(case),
            "variant": operation.name,
            "mode": mode,
            "seconds": seconds.as_dict(),
            "gb_per_s": operation.bytes_moved / seconds.median * 1e-9,
            "share_of_copy": ratio_spread([scale * second for second in samples[copy.name]], own),
            "samples": own,
            "others_cpu_share": rounds.others,
            "rounds_discarded": rounds.discarded,
        }


def _report(context: Context, label: str, taken: int) -> None:
    context.on_progress(label, taken, context.rounds)


def _skip(record: Record, name: str, reason: str) -> None:
    record["skipped"].append({"variant": name, "reason": reason})
