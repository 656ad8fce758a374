"""What the suites compare: a case, the adapter it has, and a way to run it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from gralora.bench.harness import random_tensor
from gralora.kernels import Path, forced

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# alpha = 2 r throughout.
SCALING = 2.0

# The base that is an nn.Linear with a plain weight.
PLAIN = "plain"
# The base that is the experts of a mixture-of-experts layer.
EXPERTS = "moe"
# The base that is plain layers which read one input.
SHARED = "shared"

# What a layer gives, or layers that read one input.
Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One layer, adapter and token count.

    ``rank`` is what each output block sees, as PEFT's r; ``grid`` is k; ``cold`` asks for a ring of
    layers larger than the L2 cache, so that every call reads its weights from memory; ``base`` is
    the kind of the frozen layer, one of `gralora.bench.bases.BASES`, `EXPERTS` or `SHARED`.
    """

    in_features: int
    out_features: int
    tokens: int
    rank: int
    grid: int
    dtype: str
    cold: bool = False
    base: str = PLAIN

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of x, y, their gradients and a weight that is not quantised."""
        return DTYPES[self.dtype]

    @property
    def products(self) -> tuple[tuple[int, int, int], ...]:
        """The frozen products: rows, in- and out-features of each."""
        return ((self.tokens, self.in_features, self.out_features),)

    @property
    def weight_elements(self) -> int:
        """Numbers that the frozen weight has."""
        return self.in_features * self.out_features

    @property
    def input_elements(self) -> int:
        """Numbers that the frozen products read besides their weights."""
        return sum(rows * n for rows, n, _ in self.products)

    @property
    def result_widths(self) -> tuple[int, ...]:
        """Width of each result: of y alone."""
        return (self.out_features,)

    @property
    def text(self) -> str:
        """One line for people."""
        return case_text(asdict(self))


def case_text(case: Mapping[str, Any]) -> str:
    """One line that says which layer, token count and adapter a timing of a result file is of."""
    cold = ", weights cold" if case["cold"] else ""
    return (
        f"{shape_text(case)}, T {case['tokens']}, "
        f"r {case['rank']}, k {case['grid']}, {case['dtype']}{cold}{base_text(case)}"
    )


def shape_text(case: Mapping[str, Any]) -> str:
    """``4096→1024``, or ``4096→4096+1024+1024`` of layers that read one input."""
    widths = case.get("widths", (case["out_features"],))
    return f"{case['in_features']}→{'+'.join(map(str, widths))}"


def base_text(case: Mapping[str, Any]) -> str:
    """What a line on a case says of its base: nothing of plain ones, as older files have."""
    base = case.get("base", PLAIN)
    if base == EXPERTS:
        return f", {case['experts']} experts, {case['chosen']} for each token"
    return "" if base in (PLAIN, SHARED) else f", over {base}"


def timings_by_weight(
    record: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Each weight and adapter of a merge record, with its timings in their order.

    Older files are of one weight, which they name once and not in every timing.
    """

    def case_of(timing: Mapping[str, Any]) -> Mapping[str, Any]:
        case: Mapping[str, Any] = timing["case"] if "case" in timing else record["case"]
        return case

    for case, timings in groupby(record["timings"], key=case_of):
        yield case, list(timings)


@dataclass(frozen=True)
class Factors:
    """The adapter that a case's GraLoRA variants hold: A ``[k, n, r]``, B ``[k, r, m]``, fp32."""

    A: Tensor
    B: Tensor

    @classmethod
    def draw(cls, case: Case, device: torch.device) -> Factors:
        """Draw both at random: a fresh adapter's zero B would be unlike a trained one's."""
        k, n, m = case.grid, case.in_features // case.grid, case.out_features // case.grid
        draw = functools.partial(random_tensor, dtype=torch.float32, device=device)
        return cls(
            draw(k, n, case.rank, scale=n**-0.5),
            draw(k, case.rank, m, scale=0.1 * case.rank**-0.5),
        )


@dataclass(frozen=True)
class Variant:
    """A way to run the layer, once for each linear of the ring.

    ``modules[i](x)`` is y, or each y where layers read one input; ``parameters[i]`` are what a
    training step makes gradients of besides x. For GraLoRA they are A and B in the layouts of
    `Factors`, one layer's after another's. ``extra_rank`` is the width of the low-rank products
    that the variant adds to the base's. ``path`` is what its products are forced to take, forward
    and backward; None where they take the fastest way, or are not gralora's. ``drops`` where the
    adapter's input goes through dropout.
    """

    name: str
    modules: Sequence[Callable[[Tensor], Outputs]]
    parameters: Sequence[tuple[Tensor, ...]]
    extra_rank: int
    is_gralora: bool = field(default=False)
    path: Path | None = None
    drops: bool = False

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Let a variant that drops drop nothing, so that what it computes can be checked."""
        dropping = [
            module for module in self.modules if self.drops and isinstance(module, nn.Module)
        ]
        for module in dropping:
            module.eval()
        try:
            yield
        finally:
            for module in dropping:
                module.train()

    def on_path(self) -> AbstractContextManager[None]:
        """Hold its path while it runs, or is captured in a graph."""
        return nullcontext() if self.path is None else forced(self.path)


class UnavailableError(Exception):
    """A variant cannot run here; the message says why."""


def first_line(error: Exception) -> str:
    """What an error says, for a line on what was skipped."""
    return str(error).strip().partition("\n")[0]
