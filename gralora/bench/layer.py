"""Suite ``layer``: forward and training step of one adapted layer, and of its peers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gralora.bench.agreement import relative_errors
from gralora.bench.bases import BASES, has_input_gradient, make_ring
from gralora.bench.case import (
    PLAIN,
    Case,
    Factors,
    Outputs,
    UnavailableError,
    Variant,
    first_line,
)
from gralora.bench.disturbance import CpuWatch
from gralora.bench.harness import (
    EagerTimer,
    GraphContext,
    GraphTimer,
    Rounds,
    Timer,
    interleave,
    l2_bytes,
    random_tensor,
)
from gralora.bench.layer_records import Recorder, timing_records
from gralora.bench.memory import peak_bytes, saved_bytes
from gralora.bench.variants import BUILDERS, ON_PATH

PASSES: tuple[str, ...] = ("forward", "step")

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
    """What one call works on: which of the ring, x ``[1, T, N]`` and dy ``[1, T, M]``.

    Where layers read one x there is a dy for each.
    """

    layer: int
    x: Tensor
    dy: Outputs


def run_case(case: Case, settings: Settings, recorder: Recorder) -> None:
    """Build every variant of ``case``, check it, and measure what ``settings`` asks for."""
    torch.manual_seed(0)
    try:
        ring = make_ring(case, settings.device)
    except UnavailableError as reason:
        recorder.skip(case.base, case, str(reason))
        return
    linears = ring.linears
    if ring.errors:
        recorder.agree("base", case, ring.errors)
    # Those of layers that read one input may be asked for beside.
    names = [name for name in settings.variants if name in BUILDERS]
    variants = build_variants(case, linears, names, recorder)
    operands = draw_operands(case, len(linears), settings.device)
    if settings.memory:
        for variant in variants:
            with variant.on_path():
                recorder.memory.append(_memory_record(case, variant, linears, operands[0]))
    if not settings.timing:
        return
    passes = PASSES
    if not has_input_gradient(case, linears[0]):
        passes = PASSES[:1]
        recorder.skip(f"step over {case.base}", case, "the base has no gradient for its input")
    no_graph = BASES[case.base].no_graph
    time_variants(case, variants, operands, passes, settings, recorder, no_graph=no_graph)


def time_variants(
    case: Case,
    variants: Sequence[Variant],
    operands: Sequence[Operands],
    passes: Sequence[str],
    settings: Settings,
    recorder: Recorder,
    *,
    no_graph: str | None = None,
) -> None:
    """Time the variants in every mode and pass; ``no_graph`` says why graphs cannot hold them."""
    for mode in settings.modes:
        if mode == "graph" and no_graph:
            recorder.skip(f"graphs over {case.base}", case, no_graph)
            continue
        for pass_name in passes:
            rounds = _rounds(case, variants, operands, mode, pass_name, settings, recorder)
            recorder.timings.extend(timing_records(case, variants, mode, pass_name, rounds))


def build_variants(
    case: Case, linears: Sequence[nn.Linear], names: Sequence[str], recorder: Recorder
) -> list[Variant]:
    """Build the variants that can run, over the same layers; check those that are GraLoRA."""
    factors = Factors.draw(case, linears[0].weight.device)
    variants = []
    for name in names:
        try:
            variant = BUILDERS[name](case, linears, factors)
            with variant.on_path():
                errors = relative_errors(case, variant, linears[0]) if variant.is_gralora else {}
        except UnavailableError as reason:
            recorder.skip(name, case, str(reason))
            continue
        except (RuntimeError, TypeError, ValueError) as error:
            # Not every peer takes every kind of quantised layer, and not every layer a forced path;
            # else it is a fault.
            if case.base == PLAIN and name not in ON_PATH:
                raise
            where = "" if case.base == PLAIN else f"over {case.base}: "
            recorder.skip(name, case, f"{where}{first_line(error)}")
            continue
        if not errors or recorder.accepts(name, case, errors):
            variants.append(variant)
    return variants


def draw_operands(case: Case, ring: int, device: torch.device) -> list[Operands]:
    """Draw x and dy.

    One pair for all layers of a cold ring, in the cache as its producer leaves it; else a few pairs
    for the one layer, which together outgrow the cache.
    """
    count = 1
    if device.type == "cuda" and ring == 1:
        width = case.in_features + sum(case.result_widths)
        bytes_each = case.tokens * width * case.torch_dtype.itemsize
        count = min(_MOST_INPUTS, math.ceil(3 * l2_bytes(device) / bytes_each))
    rows = functools.partial(random_tensor, 1, case.tokens, dtype=case.torch_dtype, device=device)
    sets = [
        Operands(
            layer=0,
            x=rows(case.in_features).requires_grad_(),
            dy=tuple(rows(width) for width in case.result_widths),
        )
        for _ in range(count)
    ]
    if ring == 1:
        return sets
    return [Operands(layer, sets[0].x, sets[0].dy) for layer in range(ring)]


def forward(variant: Variant, operands: Operands) -> Outputs:
    """Run the layer: y ``[1, T, M]``, or each y of layers that read one x."""
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
    timer: Timer
    context = GraphContext(settings.device) if mode == "graph" else None
    for variant in variants:
        calls = [functools.partial(run, variant, item) for item in operands]
        try:
            with variant.on_path():
                timer = (
                    GraphTimer(calls, context) if context else EagerTimer(calls, settings.device)
                )
            timers[variant.name] = _on_path(timer, variant)
        except RuntimeError as error:
            recorder.skip(variant.name, case, f"{mode} {pass_name}: {first_line(error)}")
    label = f"{case.text}, {mode} {pass_name}"
    return interleave(
        timers,
        settings.rounds,
        watch=CpuWatch() if settings.device.type == "cpu" else None,
        on_round=lambda taken: recorder.on_progress(label, taken, settings.rounds),
    )


def _on_path(timer: Timer, variant: Variant) -> Timer:
    """Time under the path too: eager calls choose when they run, graphs when they were captured."""
    if variant.path is None:
        return timer

    def timed() -> float:
        with variant.on_path():
            return timer()

    return timed


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
