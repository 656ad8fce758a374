"""Benchmarks of gralora: ``python benchmarks/run.py layer``, ``merge``, or ``show FILE``.

Start it by its path, so that the installed package is measured and not the sources beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from environment import ROOT, SCHEMA, environment, gpu_state, write_json
from layer import COLD_BELOW_TOKENS, Recorder, Settings, run_case
from merge import run_merge
from report import console, show
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from shapes import MODELS, parse_ranks, parse_shapes, parse_tokens
from variants import BUILDERS, DTYPES, Case

_FEWEST_ROUNDS = 9

# What a suite does when it is told nothing but the device.
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "layer": {
        "cpu": {"shapes": "2048x2048", "tokens": "512", "dtype": "fp32", "rounds": 31},
        "cuda": {"shapes": "4096x4096", "tokens": "8192", "dtype": "bf16", "rounds": 15},
    },
    "merge": {
        "cpu": {"shape": "1024x1024", "dtype": "fp32", "rounds": 31},
        "cuda": {"shape": "4096x14336", "dtype": "bf16", "rounds": 31},
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "show":
        for path in options.files:
            show(json.loads(path.read_text(encoding="utf-8")), console(), short=options.short)
        return 0
    _fill_defaults(options)
    try:
        _check(options)
        if options.command == "layer":
            cases = _layer_cases(options)
            options.variants = _variants(options)
        else:
            cases = [_merge_case(options)]
    except ValueError as error:
        parser.error(str(error))
    if options.threads:
        torch.set_num_threads(options.threads)
    run = _run_layer if options.command == "layer" else _run_merge
    record = run(options, cases)
    show(record, console())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    layer = commands.add_parser("layer", help="one adapted layer: forward and training step")
    what = layer.add_mutually_exclusive_group()
    what.add_argument("--shapes", help="in x out features: 4096x4096,4096x14336")
    what.add_argument("--preset", choices=MODELS, help="the layer shapes of a model")
    layer.add_argument("--tokens", help="token counts: 512,8192")
    layer.add_argument(
        "--rk", default="64:4", help="rank and grid: 32:2,64:4 (default %(default)s)"
    )
    layer.add_argument(
        "--variants", help=f"any of {','.join(BUILDERS)} (default: all that fit the dtype)"
    )
    layer.add_argument(
        "--cold",
        choices=("auto", "always", "never"),
        default="auto",
        help="cycle through more weights than the L2 cache holds; auto: up to "
        f"{COLD_BELOW_TOKENS - 1} tokens",
    )
    layer.add_argument("--memory", action="store_true", help="measure memory too")
    layer.add_argument("--no-timing", action="store_true", help="with --memory: that alone")
    merge = commands.add_parser("merge", help="merging a weight, against copy bandwidth")
    merge.add_argument("--shape", help="in x out features: 4096x14336")
    merge.add_argument("--rk", default="64:4", help="rank and grid (default %(default)s)")
    for suite in (layer, merge):
        suite.add_argument("--device", choices=("cpu", "cuda"))
        suite.add_argument("--dtype", choices=DTYPES)
        suite.add_argument("--rounds", type=int, help=f"interleaved, at least {_FEWEST_ROUNDS}")
        suite.add_argument(
            "--mode",
            choices=("graph", "eager", "both"),
            help="graph: device time of CUDA-graph replays; eager: wall time "
            "(default: graph on cuda, eager on cpu)",
        )
        suite.add_argument("--threads", type=int, help="CPU threads of torch")
        suite.add_argument("--json", type=Path, help="write the results there")
    shower = commands.add_parser("show", help="print result files")
    shower.add_argument("--short", action="store_true", help="one row for each layer")
    shower.add_argument("files", nargs="+", type=Path)
    return parser


def _fill_defaults(options: argparse.Namespace) -> None:
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name, value in _DEFAULTS[options.command][options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.mode = options.mode or ("graph" if options.device == "cuda" else "eager")


def _check(options: argparse.Namespace) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device")
    if options.device == "cpu" and options.mode != "eager":
        raise ValueError(f"mode: a CPU has eager alone, got {options.mode}")
    if options.rounds < _FEWEST_ROUNDS:
        raise ValueError(f"rounds: at least {_FEWEST_ROUNDS}, got {options.rounds}")


def _modes(options: argparse.Namespace) -> list[str]:
    return ["graph", "eager"] if options.mode == "both" else [options.mode]


def _layer_cases(options: argparse.Namespace) -> list[Case]:
    shapes = MODELS[options.preset] if options.preset else parse_shapes(options.shapes)
    cases = [
        Case(
            in_features=shape.in_features,
            out_features=shape.out_features,
            tokens=tokens,
            rank=rank,
            grid=grid,
            dtype=options.dtype,
            cold=_is_cold(options, tokens),
        )
        for shape in shapes
        for tokens in parse_tokens(options.tokens)
        for rank, grid in parse_ranks(options.rk)
    ]
    for case in cases:
        _check_grid(case)
    return cases


def _is_cold(options: argparse.Namespace, tokens: int) -> bool:
    if options.device == "cpu" or options.cold == "never":
        return False
    return options.cold == "always" or tokens < COLD_BELOW_TOKENS


def _merge_case(options: argparse.Namespace) -> Case:
    (shape,), ((rank, grid),) = parse_shapes(options.shape), parse_ranks(options.rk)
    case = Case(shape.in_features, shape.out_features, 0, rank, grid, options.dtype)
    _check_grid(case)
    return case


def _check_grid(case: Case) -> None:
    if case.in_features % case.grid or case.out_features % case.grid:
        raise ValueError(
            f"rk: k must divide both features, got {case.in_features}x{case.out_features}, "
            f"k={case.grid}"
        )


def _variants(options: argparse.Namespace) -> list[str]:
    """The names asked for; by default fp32 adapters only beside a 16-bit x."""
    if options.variants is None:
        half = DTYPES[options.dtype].itemsize == 2
        return [name for name in BUILDERS if half or not name.endswith(("_fp32", "_autocast"))]
    names: list[str] = options.variants.split(",")
    unknown = [name for name in names if name not in BUILDERS]
    if unknown:
        raise ValueError(f"variants: any of {','.join(BUILDERS)}, got {','.join(unknown)}")
    return names


def _run_layer(options: argparse.Namespace, cases: Sequence[Case]) -> dict[str, Any]:
    device = torch.device(options.device)
    settings = Settings(
        device=device,
        variants=options.variants,
        modes=_modes(options),
        rounds=options.rounds,
        memory=options.memory,
        timing=not options.no_timing,
    )
    head = _head("layer", options, device)
    with _progress() as on_progress:
        recorder = Recorder(on_progress)
        for case in cases:
            run_case(case, settings, recorder)
            # After each case: a run that is cut off keeps what it has.
            record = {**head, **recorder.as_dict(), "gpu_state_after": _gpu_state(device)}
            if options.json:
                write_json(options.json, record)
    return record


def _run_merge(options: argparse.Namespace, cases: Sequence[Case]) -> dict[str, Any]:
    device = torch.device(options.device)
    head = _head("merge", options, device)
    with _progress() as on_progress:
        measured = run_merge(cases[0], device, _modes(options), options.rounds, on_progress)
    record = {**head, **measured, "gpu_state_after": _gpu_state(device)}
    if options.json:
        write_json(options.json, record)
    return record


def _head(suite: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    settings = {
        name: value
        for name, value in vars(options).items()
        if name not in ("command", "json") and value is not None
    }
    return {
        "schema": SCHEMA,
        "suite": suite,
        "environment": environment(device),
        "settings": settings,
    }


def _gpu_state(device: torch.device) -> dict[str, str] | None:
    return gpu_state(device) if device.type == "cuda" else None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def on_progress(label: str, done: int, total: int) -> None:
            progress.update(task, description=label, completed=done, total=total)

        yield on_progress


if __name__ == "__main__":
    sys.exit(main())
