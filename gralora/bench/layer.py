"""Suite ``layer``: forward and training step of one adapted layer, and of its peers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gralora.bench.agreement import TOLERANCE, relative_errors
from gralora.bench.case import Case, Factors, UnavailableError, Variant
from gralora.bench.disturbance import CpuWatch
from gralora.bench.harness import (
    EagerTimer,
    GraphContext,
    GraphTimer,
    Progress,
    Rounds,
    Timer,
    interleave,
    l2_bytes,
    random_tensor,
    ratio_spread,
    spread,
)
from gralora.bench.memory import peak_bytes, saved_bytes
from gralora.bench.variants import BUILDERS

PASSES = ("forward", "step")
REFERENCES = ("base", "peft_gralora")

# Below this many tokens a weight that is still in the L2 cache would flatter every variant.
COLD_BELOW_TOKENS = 2049
_MOST_INPUTS = 3


@dataclass(frozen=True)
class Settings:
    """How the cases are run.

    ``modes`` holds "graph" (device time of CUDA-graph replays) and "eager" (wall time).
    """

    device: torch.device
    variants: Sequence[str]
    modes: Sequence[str]
    rounds: int
    memory: bool
    timing: bool = True


@dataclass(frozen=True)
class Operands:
    """What one call works on: which layer of the ring, x ``[1, T, N]`` and dy ``[1, T, M]``."""

    layer: int
    x: Tensor
    dy: Tensor


class Recorder:
    """Collects a run's records and says what is going on."""

    def __init__(self, on_progress: Progress) -> None:
        """``on_progress(label, done, total)`` is called as samples come in."""
        self.timings: list[dict[str, Any]] = []
        self.memory: list[dict[str, Any]] = []
        self.agreement: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self.on_progress = on_progress

    def skip(self, variant: str, case: Case, reason: str) -> None:
        """Note that a variant is missing from a case."""
        self.skipped.append({"case": asdict(case), "variant": variant, "reason": reason})

    def as_dict(self) -> dict[str, Any]:
        """Everything collected so far, for JSON."""
        return {
            "timings": self.timings,
            "memory": self.memory,
            "agreement": self.agreement,
            "skipped": self.skipped,
        }


def run_case(case: Case, settings: Settings, recorder: Recorder) -> None:
    """Build every variant of ``case``, check it, and measure what ``settings`` asks for."""
    torch.manual_seed(0)
    linears = list(_ring(case, settings.device))
    variants = build_variants(case, linears, settings.variants, recorder)
    operands = _operands(case, len(linears), settings.device)
    if settings.memory:
        for variant in variants:
            recorder.memory.append(_memory_record(case, variant, linears, operands[0]))
    if not settings.timing:
        return
    for mode in settings.modes:
        for pass_name in PASSES:
            rounds = _rounds(case, variants, operands, mode, pass_name, settings, recorder)
            recorder.timings.extend(_timing_records(case, variants, mode, pass_name, rounds))


def _ring(case: Case, device: torch.device) -> Iterator[nn.Linear]:
    count = 1
    if case.cold and device.type == "cuda":
        weight_bytes = case.in_features * case.out_features * case.torch_dtype.itemsize
        count = max(2, math.ceil(3 * l2_bytes(device) / weight_bytes))
    for _ in range(count):
        linear = nn.Linear(
            case.in_features, case.out_features, bias=False, device=device, dtype=case.torch_dtype
        )
        yield linear.requires_grad_(False)


def build_variants(
    case: Case, linears: Sequence[nn.Linear], names: Sequence[str], recorder: Recorder
) -> list[Variant]:
    """Build the variants that can run, over the same layers; check those that are GraLoRA."""
    factors = Factors.draw(case, linears[0].weight.device)
    variants = []
    for name in names:
        try:
            variant = BUILDERS[name](case, linears, factors)
        except UnavailableError as reason:
            recorder.skip(name, case, str(reason))
            continue
        if variant.is_gralora:
            errors = relative_errors(case, variant, linears[0])
            recorder.agreement.append({"case": asdict(case), "variant": name, "errors": errors})
            if not max(errors.values()) <= TOLERANCE[case.dtype]:
                recorder.skip(name, case, f"wrong result, relative errors {errors}")
                continue
        variants.append(variant)
    return variants


def _operands(case: Case, ring: int, device: torch.device) -> list[Operands]:
    """Draw x and dy.

    One pair for all layers of a cold ring, in the cache as its producer leaves it; else a few pairs
    for the one layer, which together outgrow the cache.
    """
    count = 1
    if device.type == "cuda" and ring == 1:
        width = case.in_features + case.out_features
        bytes_each = case.tokens * width * case.torch_dtype.itemsize
        count = min(_MOST_INPUTS, math.ceil(3 * l2_bytes(device) / bytes_each))
    rows = functools.partial(random_tensor, 1, case.tokens, dtype=case.torch_dtype, device=device)
    sets = [
        Operands(
            layer=0,
            x=rows(case.in_features).requires_grad_(),
            dy=rows(case.out_features),
        )
        for _ in range(count)
    ]
    if ring == 1:
        return sets
    return [Operands(layer, sets[0].x, sets[0].dy) for layer in range(ring)]


def forward(variant: Variant, operands: Operands) -> Tensor:
    """Run the layer: y ``[1, T, M]``."""
    return variant.modules[operands.layer](operands.x)


def step(variant: Variant, operands: Operands) -> tuple[Tensor, ...]:
    """Forward, then the gradients of x and of the adapter by `torch.autograd.grad`.

    So what ``.backward()`` adds for the optimiser, accumulating or cloning into ``.grad``, is left
    out for all.
    """
    y = forward(variant, operands)
    inputs = (operands.x, *variant.parameters[operands.layer])
    return torch.autograd.grad(y, inputs, operands.dy)


def _rounds(
    case: Case,
    variants: Sequence[Variant],
    operands: Sequence[Operands],
    mode: str,
    pass_name: str,
    settings: Settings,
    recorder: Recorder,
) -> Rounds:
    run = forward if pass_name == "forward" else step
    timers: dict[str, Timer] = {}
    context = GraphContext(settings.device) if mode == "graph" else None
    for variant in variants:
        calls = [functools.partial(run, variant, item) for item in operands]
        try:
            timers[variant.name] = (
                GraphTimer(calls, context) if context else EagerTimer(calls, settings.device)
            )
        except RuntimeError as error:
            recorder.skip(variant.name, case, f"{mode} {pass_name}: {_first_line(error)}")
    label = f"{case.text}, {mode} {pass_name}"
    return interleave(
        timers,
        settings.rounds,
        watch=CpuWatch() if settings.device.type == "cpu" else None,
        on_round=lambda taken: recorder.on_progress(label, taken, settings.rounds),
    )


def _timing_records(
    case: Case,
    variants: Sequence[Variant],
    mode: str,
    pass_name: str,
    rounds: Rounds,
) -> Iterator[dict[str, Any]]:
    samples = rounds.samples
    for variant in variants:
        if variant.name not in samples:
            continue
        own = samples[variant.name]
        seconds = spread(own)
        yield {
            "case": asdict(case),
            "variant": variant.name,
            "mode": mode,
            "pass": pass_name,
            "seconds": seconds.as_dict(),
            "ratio": {
                name: ratio_spread(own, samples[name]) for name in REFERENCES if name in samples
            },
            "tflop_per_s": _flop(case, variant, pass_name) / seconds.median * 1e-12,
            "gb_per_s": _least_bytes(case, variant, pass_name) / seconds.median * 1e-9,
            "samples": own,
            "others_cpu_share": rounds.others,
            "rounds_discarded": rounds.discarded,
        }


def _flop(case: Case, variant: Variant, pass_name: str) -> int:
    """Multiplications and additions that the mathematics asks for.

    A step has the base product twice (y, dx) and the two low-rank products three times (forward,
    dx, dA with dB).
    """
    base = 2 * case.tokens * case.in_features * case.out_features
    adapter = 2 * case.tokens * variant.extra_rank * (case.in_features + case.out_features)
    return base + adapter if pass_name == "forward" else 2 * base + 3 * adapter


def _least_bytes(case: Case, variant: Variant, pass_name: str) -> int:
    """Bytes of memory traffic when each pass reads its operands and writes its results just once.

    The frozen layer: x, W, y, and in the backward dy, W, dx. An adapter adds x to the backward (for
    dA), its parameters to both, and their gradients.
    """
    item = case.torch_dtype.itemsize
    rows = case.tokens * (case.in_features + case.out_features) * item
    weight = case.in_features * case.out_features * item
    parameters = sum(p.numel() * p.element_size() for p in variant.parameters[0])
    forward = rows + weight + parameters
    if pass_name == "forward":
        return forward
    x_again = case.tokens * case.in_features * item if variant.parameters[0] else 0
    return forward + rows + weight + x_again + 2 * parameters


def _memory_record(
    case: Case, variant: Variant, linears: Sequence[nn.Linear], operands: Operands
) -> dict[str, Any]:
    """Bytes kept for backward and, on CUDA, the peak of a step; beside them what the design allows.

    ``latent_bytes`` is H (its rows padded to 8 elements); a step adds G, as large, and the
    gradients of the parameters.
    """
    device = operands.x.device
    existing = [linears[operands.layer].weight, *variant.parameters[operands.layer]]
    item = case.torch_dtype.itemsize
    pitch = math.ceil(case.rank / 8) * 8
    record = {
        "case": asdict(case),
        "variant": variant.name,
        "saved_bytes": saved_bytes(lambda: forward(variant, operands), existing),
        "x_bytes": case.tokens * case.in_features * item,
        "latent_bytes": case.grid * case.tokens * pitch * item if variant.is_gralora else 0,
        "parameter_bytes": sum(p.numel() * p.element_size() for p in existing[1:]),
        "peak_bytes": None,
    }
    if device.type == "cuda":
        record["peak_bytes"] = peak_bytes(lambda: step(variant, operands), device)
    return record


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
