"""Suite ``kernels``: options of the command line to cases and settings."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial

from gralora.bench.case import Case
from gralora.bench.kernel_operations import DRAWS
from gralora.bench.kernels import CHOSEN, PATHS, Recorder, Settings, run_case
from gralora.bench.kernels_report import show_kernels
from gralora.bench.layer_suite import add_layer_options, cases_of
from gralora.bench.suite import Context, Record, Run, Suite, choose_names

# Names on the command line have no blanks.
_STEPS = {name.replace(" ", "-"): name for name in DRAWS}


def _add_options(parser: ArgumentParser) -> None:
    add_layer_options(parser)
    parser.add_argument("--steps", help=f"any of {','.join(_STEPS)} (default: all)")
    parser.add_argument(
        "--path",
        help=f"any of {','.join(PATHS)}, timed side by side (default: {CHOSEN}, which each shape "
        "gets by itself); a CPU has library calls alone",
    )
    parser.add_argument(
        "--mode",
        choices=("graph", "eager"),
        help="device time of CUDA-graph replays, or wall time (default: graph on cuda)",
    )


def _prepare(options: Namespace) -> Run:
    mode = options.mode or ("graph" if options.device == "cuda" else "eager")
    paths = choose_names("path", options.path, PATHS, [CHOSEN])
    if options.device == "cpu":
        if mode != "eager":
            raise ValueError(f"mode: a CPU has eager alone, got {mode}")
        if paths != [CHOSEN]:
            raise ValueError(f"path: a CPU has library calls alone, got {options.path}")
    steps = choose_names("steps", options.steps, list(_STEPS), list(_STEPS))
    settings = Settings(
        device=options.torch_device,
        names=[_STEPS[step] for step in steps],
        paths=paths,
        mode=mode,
        rounds=options.rounds,
    )
    return partial(_run, cases_of(options), settings)


def _run(cases: list[Case], settings: Settings, context: Context) -> Record:
    recorder = Recorder(context.on_progress)
    for case in cases:
        run_case(case, settings, recorder)
        context.save(recorder.as_dict())
    return recorder.as_dict()


KERNELS = Suite(
    name="kernels",
    help="each step of an adapter by itself, against copy bandwidth and matrix rate",
    defaults={
        "cpu": {"shapes": "1024x1024", "tokens": "256", "rk": "64:4", "dtype": "fp32", "rounds": 9},
        "cuda": {
            "shapes": "4096x4096",
            "tokens": "8192",
            "rk": "64:4",
            "dtype": "bf16",
            "rounds": 15,
        },
    },
    add_options=_add_options,
    prepare=_prepare,
    show=show_kernels,
)
