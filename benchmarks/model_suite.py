"""Suite ``model``: options of the command line, and its tables."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from itertools import groupby
from typing import Any

from decoders import DECODERS
from model import ModelCase, Settings, run_model
from model_variants import BUILDERS
from rich.console import Console
from rich.table import Table

from gralora.bench.case import DTYPES
from gralora.bench.report import new_table, quartiles, ratio
from gralora.bench.shapes import MODELS, parse_ranks, parse_tokens
from gralora.bench.suite import Run, Suite, choose_names

_GIB = 1 << 30


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--preset", choices=DECODERS, help="whose layer shapes")
    parser.add_argument("--layers", type=int, help="number of decoder layers")
    parser.add_argument("--tokens", help="tokens of a step: 1024,8192")
    parser.add_argument(
        "--sequence",
        type=int,
        default=2048,
        help="tokens of a sequence, where a step has as many (default %(default)s)",
    )
    parser.add_argument(
        "--checkpointed", help="tokens of steps that are repeated with gradient checkpointing"
    )
    parser.add_argument(
        "--rk", default="64:4", help="rank and grid: 32:2,64:4 (default %(default)s)"
    )
    parser.add_argument("--variants", help=f"any of {','.join(BUILDERS)} (default: all)")
    parser.add_argument(
        "--optimizer", action="store_true", help="time steps that end with AdamW's too"
    )


def _prepare(options: Namespace) -> Run:
    try:
        import transformers  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ValueError(
            f"model: needs transformers (pip install transformers): {error}"
        ) from error
    if options.layers < 1:
        raise ValueError(f"layers: at least 1, got {options.layers}")
    if options.sequence < 1:
        raise ValueError(f"sequence: at least 1, got {options.sequence}")
    half = DTYPES[options.dtype].itemsize == 2
    usual = [name for name in BUILDERS if half or not name.endswith(("_fp32", "_autocast"))]
    options.variants = choose_names("variants", options.variants, list(BUILDERS), usual)
    return partial(run_model, _cases(options), Settings(options.variants, options.optimizer))


def _cases(options: Namespace) -> list[ModelCase]:
    plain = [(tokens, False) for tokens in parse_tokens(options.tokens)]
    checkpointed = options.checkpointed
    again = [(tokens, True) for tokens in parse_tokens(checkpointed)] if checkpointed else []
    cases = []
    for rank, grid in parse_ranks(options.rk):
        for shape in MODELS[options.preset]:
            if shape.in_features % grid or shape.out_features % grid:
                raise ValueError(f"rk: k must divide {shape.text} ({shape.name}), got k={grid}")
        for tokens, checkpointing in plain + again:
            sequence = min(tokens, options.sequence)
            if tokens % sequence:
                raise ValueError(
                    f"tokens: a multiple of the sequence, got {tokens} in sequences of {sequence}"
                )
            cases.append(
                ModelCase(
                    model=options.preset,
                    layers=options.layers,
                    tokens=tokens,
                    sequence=sequence,
                    checkpointing=checkpointing,
                    rank=rank,
                    grid=grid,
                    dtype=options.dtype,
                )
            )
    return cases


def model_case_text(case: dict[str, Any]) -> str:
    """One line that says which decoder, step and adapter a timing is of."""
    return ModelCase(**case).text


def _show_model(record: dict[str, Any], console: Console, short: bool) -> None:
    memory = {(model_case_text(m["case"]), m["variant"]): m for m in record["memory"]}

    def group(timing: dict[str, Any]) -> tuple[str, str]:
        return model_case_text(timing["case"]), timing["pass"]

    for (case, pass_name), timings in groupby(record["timings"], key=group):
        table = new_table(f"{case}: {pass_name}", _COLUMNS)
        _add_rows(table, case, list(timings), memory)
        console.print(table)


_COLUMNS = (
    "variant", "ms", "tokens/s", "/frozen", "quartiles", "/PEFT GraLoRA", "activations GiB",
    "over frozen", "peak GiB",
)  # fmt: skip


def _add_rows(
    table: Table,
    case: str,
    timings: list[dict[str, Any]],
    memory: dict[tuple[str, str], dict[str, Any]],
) -> None:
    frozen = memory.get((case, "frozen"), {}).get("activation_bytes")
    for timing in timings:
        found = memory[case, timing["variant"]]
        activations = found["activation_bytes"]
        over = activations - frozen if activations is not None and frozen is not None else None
        table.add_row(
            timing["variant"],
            f"{timing['seconds']['median'] * 1e3:.4g}",
            f"{timing['tokens_per_s']:.4g}",
            ratio(timing, "frozen"),
            quartiles(timing, "frozen"),
            ratio(timing, "peft_gralora"),
            gibibytes(activations),
            gibibytes(over),
            gibibytes(found["peak_bytes"]),
        )


def gibibytes(count: int | None) -> str:
    """Bytes in GiB; nothing where they were not measured."""
    return "" if count is None else f"{count / _GIB:.2f}"


MODEL = Suite(
    name="model",
    help="training steps of a decoder with a public model's layer shapes",
    defaults={
        "cpu": {
            "preset": "smollm2-135m",
            "layers": 1,
            "tokens": "128",
            "dtype": "fp32",
            "rounds": 9,
        },
        "cuda": {
            "preset": "llama-3.1-8b",
            "layers": 4,
            "tokens": "8192",
            "dtype": "bf16",
            "rounds": 15,
        },
    },
    add_options=_add_options,
    prepare=_prepare,
    show=_show_model,
)
