"""Suite ``host``: what a call costs the CPU, whatever the device does meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gralora.bench.case import Case, Variant
from gralora.bench.disturbance import CpuWatch
from gralora.bench.harness import HostTimer, interleave, random_tensor, ratio_spread, spread
from gralora.bench.layer import Operands, build_variants, forward, step
from gralora.bench.layer_records import Recorder
from gralora.bench.suite import Context, Record


def _inference(variant: Variant, operands: Operands) -> Tensor:
    with torch.inference_mode():
        return forward(variant, operands)


PASSES: dict[str, Callable[[Variant, Operands], object]] = {
    "inference": _inference,
    "forward": forward,
    "step": step,
}


def run_host(cases: Sequence[Case], names: Sequence[str], context: Context) -> Record:
    """Time every pass of every variant; a case's token count and layer should be small."""
    recorder = Recorder(context.on_progress)
    for case in cases:
        torch.manual_seed(0)
        device = context.device
        linear = nn.Linear(
            case.in_features, case.out_features, bias=False, device=device, dtype=case.torch_dtype
        ).requires_grad_(False)
        variants = build_variants(case, [linear], names, recorder)
        rows = functools.partial(
            random_tensor, 1, case.tokens, dtype=case.torch_dtype, device=device
        )
        operands = Operands(0, rows(case.in_features).requires_grad_(), rows(case.out_features))
        for pass_name in PASSES:
            recorder.timings.extend(_timings(case, variants, operands, pass_name, context))
        context.save(recorder.as_dict())
    return recorder.as_dict()


def _timings(
    case: Case,
    variants: Sequence[Variant],
    operands: Operands,
    pass_name: str,
    context: Context,
) -> Iterator[dict[str, Any]]:
    run = PASSES[pass_name]
    rounds = interleave(
        {v.name: HostTimer(functools.partial(run, v, operands), context.device) for v in variants},
        context.rounds,
        watch=CpuWatch() if context.device.type == "cpu" else None,
        on_round=lambda taken: context.on_progress(
            f"{case.text}, {pass_name}", taken, context.rounds
        ),
    )
    base = rounds.samples.get("base")
    for variant in variants:
        own = rounds.samples[variant.name]
        yield {
            "case": asdict(case),
            "variant": variant.name,
            "mode": "host",
            "pass": pass_name,
            "seconds": spread(own).as_dict(),
            "ratio": {"base": ratio_spread(own, base)} if base else {},
            "samples": own,
            "others_cpu_share": rounds.others,
            "rounds_discarded": rounds.discarded,
        }
