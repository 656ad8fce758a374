"""What the suite ``layer`` writes down of its cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gralora.bench.agreement import TOLERANCE
from gralora.bench.bases import kind_of
from gralora.bench.case import Case, Variant
from gralora.bench.harness import Progress, Rounds, ratio_spread, spread

# What a record's ratios are over.
REFERENCES = ("base", "peft_gralora", "cublas", "gralora_aten")


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

    def agree(self, variant: str, case: Case, errors: Mapping[str, float]) -> None:
        """Note how far results are from those of the reference."""
        self.agreement.append({"case": asdict(case), "variant": variant, "errors": dict(errors)})

    def accepts(self, variant: str, case: Case, errors: Mapping[str, float]) -> bool:
        """Note how far results are from those of the reference; skip them where it is too far."""
        self.agree(variant, case, errors)
        if max(errors.values()) <= TOLERANCE[case.dtype]:
            return True
        self.skip(variant, case, f"wrong result, relative errors {dict(errors)}")
        return False

    def as_dict(self) -> dict[str, Any]:
        """Everything collected so far, for JSON."""
        return {
            "timings": self.timings,
            "memory": self.memory,
            "agreement": self.agreement,
            "skipped": self.skipped,
        }


def timing_records(
    case: Case,
    variants: Sequence[Variant],
    mode: str,
    pass_name: str,
    rounds: Rounds,
) -> Iterator[dict[str, Any]]:
    """One record for each variant that was timed, with its ratios over `REFERENCES`."""
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
    base = sum(2 * rows * n * m for rows, n, m in case.products)
    adapter = sum(2 * rows * variant.extra_rank * (n + m) for rows, n, m in case.products)
    return base + adapter if pass_name == "forward" else 2 * base + 3 * adapter


def _least_bytes(case: Case, variant: Variant, pass_name: str) -> int:
    """Bytes of memory traffic when each pass reads its operands and writes its results just once.

    The frozen layer: x, W, y, and in the backward dy, W, dx. An adapter adds x to the backward (for
    dA), its parameters to both, and their gradients.
    """
    item = case.torch_dtype.itemsize
    x = case.input_elements * item
    rows = x + sum(count * m for count, _, m in case.products) * item
    weight = kind_of(case).weight_bytes(case)
    parameters = sum(p.numel() * p.element_size() for p in variant.parameters[0])
    forward = rows + weight + parameters
    if pass_name == "forward":
        return forward
    x_again = x if variant.parameters[0] else 0
    return forward + rows + weight + x_again + 2 * parameters
