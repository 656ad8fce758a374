"""Times frozen layers that read one input, and the same adapted one by one and together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gralora import reference
from gralora.bench.agreement import ROWS, relative_error
from gralora.bench.bases import make_plain, ring_size
from gralora.bench.case import SCALING, Factors, UnavailableError, Variant
from gralora.bench.harness import random_tensor
from gralora.bench.layer import PASSES, Settings, draw_operands, time_variants
from gralora.bench.layer_records import Recorder
from gralora.bench.shared_case import SharedCase
from gralora.bench.variants import BUILDERS

# The layers that read one input.
Group = Sequence[nn.Linear]

# Computed by one operator, with the factors of the variant that has them layer by layer.
TOGETHER = {"gralora_shared": "gralora", "gralora_shared_fp32": "gralora_fp32"}


def run_shared(case: SharedCase, settings: Settings, recorder: Recorder) -> None:
    """Build every variant of ``case``, check it, and take times."""
    torch.manual_seed(0)
    device = settings.device
    groups: list[Group] = [
        [make_plain(layer, device) for layer in case.layers] for _ in range(ring_size(case, device))
    ]
    factors = [Factors.draw(layer, device) for layer in case.layers]
    variants = []
    for name in settings.variants:
        try:
            variant = _build(name, case, groups, factors)
        except UnavailableError as reason:
            recorder.skip(name, case, str(reason))
            continue
        with variant.on_path():
            errors = _errors(case, variant, groups[0]) if variant.is_gralora else {}
        if not errors or recorder.accepts(name, case, errors):
            variants.append(variant)
    operands = draw_operands(case, len(groups), device)
    time_variants(case, variants, operands, PASSES, settings, recorder)


def _build(
    name: str, case: SharedCase, groups: Sequence[Group], factors: Sequence[Factors]
) -> Variant:
    built = _one_by_one(TOGETHER.get(name, name), case, groups, factors)
    if name not in TOGETHER:
        return built
    modules = [
        _together(group, parameters)
        for group, parameters in zip(groups, built.parameters, strict=True)
    ]
    return Variant(name, modules, built.parameters, case.rank, is_gralora=True)


def _one_by_one(
    name: str, case: SharedCase, groups: Sequence[Group], factors: Sequence[Factors]
) -> Variant:
    """Join what the variant is for each layer; the parameters are one layer's after another's."""
    layers = [
        BUILDERS[name](layer, linears, drawn)
        for layer, linears, drawn in zip(
            case.layers, zip(*groups, strict=True), factors, strict=True
        )
    ]
    return Variant(
        name,
        [_in_turn(calls) for calls in zip(*(layer.modules for layer in layers), strict=True)],
        [
            tuple(chain.from_iterable(parts))
            for parts in zip(*(layer.parameters for layer in layers), strict=True)
        ],
        layers[0].extra_rank,
        is_gralora=layers[0].is_gralora,
        path=layers[0].path,
    )


def _in_turn(calls: Sequence[Callable[[Tensor], Any]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return lambda x: tuple(call(x) for call in calls)


def _together(group: Group, parameters: Sequence[Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    from gralora.functional import gralora_linear_group

    weights = [linear.weight for linear in group]
    biases = [linear.bias for linear in group]
    A, B = parameters[::2], parameters[1::2]
    return lambda x: gralora_linear_group(x, weights, biases, A, B, scaling=SCALING)


def _errors(case: SharedCase, variant: Variant, group: Group) -> dict[str, float]:
    """Relative errors of dx, and the worst of y, dA and dB, against each layer's reference."""
    device = group[0].weight.device

    def rows(width: int) -> Tensor:
        return random_tensor(1, ROWS, width, dtype=case.torch_dtype, device=device)

    parameters = variant.parameters[0]
    x = rows(case.in_features).requires_grad_()
    dy = [rows(width) for width in case.result_widths]
    y = variant.modules[0](x)
    got = (*y, *torch.autograd.grad(y, (x, *parameters), dy))

    exact = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    expected = [
        reference.linear(exact[0], linear.weight.double(), None, A, B, scaling=SCALING)
        for linear, A, B in zip(group, exact[1::2], exact[2::2], strict=True)
    ]
    gradients = torch.autograd.grad(expected, exact, [one.double() for one in dy])
    errors = [
        relative_error(one, other) for one, other in zip(got, (*expected, *gradients), strict=True)
    ]
    first = len(group)
    return {
        "y": max(errors[:first]),
        "dx": errors[first],
        "dA": max(errors[first + 1 :: 2]),
        "dB": max(errors[first + 2 :: 2]),
    }
