"""The frozen layers that the suite ``layer`` can adapt: plain ones, and quantised ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gralora.bench.case import EXPERTS, PLAIN, SHARED, Case, UnavailableError, first_line
from gralora.bench.harness import l2_bytes, random_tensor
from gralora.bench.quantised_layers import bnb_int8, bnb_nf4, torchao_int4, torchao_int8

# Rows of the product that says how far a quantised layer is from the plain one.
_ROWS = 70


@dataclass(frozen=True)
class Base:
    """A kind of frozen layer.

    Attributes:
        quantise: makes it of a plain layer, in place or anew; None for the plain layer itself.
        bits: of memory that an element of the weight takes, statistics included.
        library: the package that makes it, None for torch itself.
        most_error: of y relative to the plain layer's, several times what random weights show.
        no_graph: why CUDA graphs cannot hold its calls, None where they can.
    """

    quantise: Callable[[nn.Linear, Case], nn.Linear] | None = None
    bits: float | None = None
    library: str | None = None
    most_error: float = 0.0
    no_graph: str | None = None

    def weight_bytes(self, case: Case) -> int:
        """Memory that one layer's weight takes."""
        bits = 8 * case.torch_dtype.itemsize if self.bits is None else self.bits
        return math.ceil(case.weight_elements * bits / 8)


@dataclass(frozen=True)
class Ring:
    """Layers of one kind that a call goes round.

    ``errors`` is what quantising did to the first: of y, relative to the plain layer's.
    """

    linears: Sequence[nn.Linear]
    errors: Mapping[str, float] = field(default_factory=dict)


def make_ring(case: Case, device: torch.device) -> Ring:
    """Make the frozen layers of a case: one, or as many as outgrow the L2 cache.

    Raises:
        UnavailableError: the kind cannot be made here; the message says why.
    """
    base = BASES[case.base]
    count = ring_size(case, device)
    if base.quantise is None:
        return Ring([make_plain(case, device) for _ in range(count)])
    _silence(base)
    first = make_plain(case, device)
    weight = first.weight.detach().clone()
    try:
        linears = [base.quantise(first, case)]
        error = _quantisation_error(case, linears[0], weight)
    except (RuntimeError, TypeError, ValueError) as failure:
        raise UnavailableError(f"{base.library}: {first_line(failure)}") from failure
    if not error <= base.most_error:
        raise UnavailableError(
            f"wrong result of the quantised layer, relative error {error:.3g} "
            f"(at most {base.most_error})"
        )
    linears += [base.quantise(make_plain(case, device), case) for _ in range(count - 1)]
    return Ring(linears, {"y": error})


def kind_of(case: Case) -> Base:
    """The kind of layer that a case has: experts and layers that read one input are plain."""
    return BASES[PLAIN if case.base in (EXPERTS, SHARED) else case.base]


def ring_size(case: Case, device: torch.device) -> int:
    """How many of what a case describes: one, or as many as outgrow the L2 cache."""
    if not case.cold or device.type != "cuda":
        return 1
    return max(2, math.ceil(3 * l2_bytes(device) / kind_of(case).weight_bytes(case)))


def make_plain(case: Case, device: torch.device) -> nn.Linear:
    """Make a frozen layer with random weights."""
    linear = nn.Linear(
        case.in_features, case.out_features, bias=False, device=device, dtype=case.torch_dtype
    )
    return linear.requires_grad_(False)


def has_input_gradient(case: Case, linear: nn.Linear) -> bool:
    """Whether a frozen layer can be differentiated by its input, as training asks."""
    x = torch.ones(1, 1, case.in_features, dtype=case.torch_dtype, device=linear.weight.device)
    y = linear(x.requires_grad_())
    try:
        torch.autograd.grad(y, x, torch.ones_like(y))
    except RuntimeError:
        return False
    return True


def libraries(settings: Mapping[str, Any]) -> list[str]:
    """Packages that made the bases of a result file's settings."""
    names = str(settings.get("base", PLAIN)).split(",")
    found = (_LIBRARIES[name] for name in names)
    return list(dict.fromkeys(library for library in found if library))


def _quantisation_error(case: Case, linear: nn.Linear, weight: Tensor) -> float:
    x = random_tensor(1, _ROWS, case.in_features, dtype=case.torch_dtype, device=weight.device)
    with torch.no_grad():
        got = linear(x).double()
    want = x.double() @ weight.double().t()
    return float((got - want).norm() / want.norm())


def _silence(base: Base) -> None:
    """Keep a library's lines for every single call out of the times and of the terminal."""
    if base.library:
        logging.getLogger(base.library).setLevel(logging.ERROR)


# By the names on the command line.
BASES = {
    PLAIN: Base(),
    "bnb-int8": Base(
        bnb_int8,
        bits=8,
        library="bitsandbytes",
        most_error=0.03,
        no_graph="bitsandbytes asks the device for outliers, which a CUDA graph cannot wait for",
    ),
    "bnb-nf4": Base(bnb_nf4, bits=4.127, library="bitsandbytes", most_error=0.2),
    "torchao-int8": Base(torchao_int8, bits=8, library="torchao", most_error=0.03),
    "torchao-int4": Base(torchao_int4, bits=4.25, library="torchao", most_error=0.2),
}
_LIBRARIES = {name: base.library for name, base in BASES.items()}
_LIBRARIES |= {EXPERTS: "transformers", SHARED: None}
