"""Suite ``layer``: options of the command line to cases and settings."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial

from gralora.bench.bases import BASES
from gralora.bench.case import DTYPES, EXPERTS, PLAIN, SHARED, Case
from gralora.bench.experts import run_experts
from gralora.bench.experts_case import ExpertsCase, parse_experts
from gralora.bench.layer import COLD_BELOW_TOKENS, Settings, run_case
from gralora.bench.layer_records import Recorder
from gralora.bench.layer_report import show_layer
from gralora.bench.shapes import MODELS, parse_ranks, parse_shapes, parse_tokens
from gralora.bench.shared import TOGETHER, run_shared
from gralora.bench.shared_case import SharedCase, parse_groups
from gralora.bench.suite import (
    Context,
    Record,
    Run,
    Suite,
    add_mode_option,
    check_grid,
    choose_names,
    modes_of,
)
from gralora.bench.variants import BUILDERS, ON_REQUEST

_KINDS = (*BASES, EXPERTS, SHARED)


def add_layer_options(parser: ArgumentParser) -> None:
    """Which layers, token counts and adapters: options that the suite ``kernels`` has too."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shapes", help="in x out features: 4096x4096,4096x14336")
    what.add_argument("--preset", choices=MODELS, help="the layer shapes of a model")
    parser.add_argument("--tokens", help="token counts: 512,8192")
    parser.add_argument("--rk", help="rank and grid: 32:2,64:4")


def cases_of(options: Namespace) -> list[Case]:
    """Every layer with every token count and adapter.

    Raises:
        ValueError: an option that cannot be read, or a grid that does not fit.
    """
    cold = getattr(options, "cold", "never")
    bases = getattr(options, "base", PLAIN).split(",")
    shapes = MODELS[options.preset] if options.preset else parse_shapes(options.shapes)
    cases = [
        Case(
            base=base,
            in_features=shape.in_features,
            out_features=shape.out_features,
            tokens=tokens,
            rank=rank,
            grid=grid,
            dtype=options.dtype,
            cold=_is_cold(options.device, cold, tokens),
        )
        for base in bases
        if base in BASES
        for shape in shapes
        for tokens in parse_tokens(options.tokens)
        for rank, grid in parse_ranks(options.rk)
    ]
    if EXPERTS in bases:
        cases += _cases_of_experts(options)
    for case in cases:
        check_grid(case)
    if SHARED in bases:
        cases += _cases_of_groups(options)
    return cases


def _cases_of_experts(options: Namespace) -> list[Case]:
    return [
        ExpertsCase(
            in_features=hidden,
            out_features=inside,
            tokens=tokens,
            rank=rank,
            grid=grid,
            dtype=options.dtype,
            experts=experts,
            chosen=chosen,
        )
        for hidden, inside, experts, chosen in parse_experts(options.experts)
        for tokens in parse_tokens(options.tokens)
        for rank, grid in parse_ranks(options.rk)
    ]


def _cases_of_groups(options: Namespace) -> list[SharedCase]:
    cases = [
        SharedCase(
            in_features=in_features,
            out_features=sum(widths),
            tokens=tokens,
            rank=rank,
            grid=grid,
            dtype=options.dtype,
            cold=_is_cold(options.device, options.cold, tokens),
            widths=widths,
        )
        for in_features, widths in parse_groups(options.groups)
        for tokens in parse_tokens(options.tokens)
        for rank, grid in parse_ranks(options.rk)
    ]
    for case in cases:
        for layer in case.layers:
            check_grid(layer)
    return cases


def _add_options(parser: ArgumentParser) -> None:
    add_layer_options(parser)
    parser.add_argument(
        "--base",
        default=PLAIN,
        help=f"kinds of the frozen layer, any of {','.join(_KINDS)} (default: {PLAIN})",
    )
    parser.add_argument(
        "--experts",
        help=f"with --base {EXPERTS}, instead of shapes: hidden size x an expert's inside : "
        "experts : of these each token's, as 4096x14336:8:2",
    )
    parser.add_argument(
        "--groups",
        help=f"with --base {SHARED}, instead of shapes: in features x the out features of two or "
        "three layers that read one input, as 4096x4096+1024+1024",
    )
    parser.add_argument(
        "--variants",
        help=f"any of {','.join(BUILDERS)}, with --base {SHARED} {','.join(TOGETHER)} too "
        f"(default: all that fit the dtype, without {', '.join(sorted(ON_REQUEST))})",
    )
    parser.add_argument(
        "--cold",
        choices=("auto", "always", "never"),
        default="auto",
        help="cycle through more weights than the L2 cache holds; auto: up to "
        f"{COLD_BELOW_TOKENS - 1} tokens",
    )
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--no-timing", action="store_true", help="with --memory: that alone")
    add_mode_option(parser)


def _prepare(options: Namespace) -> Run:
    bases = choose_names("base", options.base, _KINDS, [PLAIN])
    # What the bases do not have, results should not speak of.
    if EXPERTS not in bases:
        options.experts = None
    if SHARED not in bases:
        options.groups = None
    known = [*BUILDERS, *TOGETHER] if SHARED in bases else list(BUILDERS)
    if options.memory and bases != [PLAIN]:
        # Quantised layers keep tensors for their backward where hooks do not see them.
        raise ValueError(f"memory: it is measured over plain layers alone, got {options.base}")
    settings = Settings(
        device=options.torch_device,
        variants=choose_names("variants", options.variants, known, _usual(known, options.dtype)),
        modes=modes_of(options),
        rounds=options.rounds,
        memory=options.memory,
        timing=not options.no_timing,
    )
    options.variants = list(settings.variants)
    return partial(_run, cases_of(options), settings)


def _run(cases: list[Case], settings: Settings, context: Context) -> Record:
    recorder = Recorder(context.on_progress)
    for case in cases:
        if isinstance(case, ExpertsCase):
            run_experts(case, settings, recorder)
        elif isinstance(case, SharedCase):
            run_shared(case, settings, recorder)
        else:
            run_case(case, settings, recorder)
        context.save(recorder.as_dict())
    return recorder.as_dict()


def _usual(known: Sequence[str], dtype: str) -> list[str]:
    """All but the slow ones; fp32 adapters only beside a 16-bit x."""
    half = DTYPES[dtype].itemsize == 2
    return [
        name
        for name in known
        if name not in ON_REQUEST and (half or not name.endswith(("_fp32", "_autocast")))
    ]


def _is_cold(device: str, cold: str, tokens: int) -> bool:
    if device == "cpu" or cold == "never":
        return False
    return cold == "always" or tokens < COLD_BELOW_TOKENS


LAYER = Suite(
    name="layer",
    help="one adapted layer: forward and training step",
    defaults={
        "cpu": {
            "shapes": "2048x2048",
            "experts": "256x512:8:2",
            "groups": "1024x1024+256+256",
            "tokens": "512",
            "rk": "64:4",
            "dtype": "fp32",
            "rounds": 31,
        },
        "cuda": {
            "shapes": "4096x4096",
            "experts": "2048x768:128:8",
            "groups": "4096x4096+1024+1024,4096x14336+14336",
            "tokens": "8192",
            "rk": "64:4",
            "dtype": "bf16",
            "rounds": 15,
        },
    },
    add_options=_add_options,
    prepare=_prepare,
    show=show_layer,
)
