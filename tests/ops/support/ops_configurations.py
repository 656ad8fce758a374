"""Configurations of the operators as hypothesis draws them, and what each must give."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from ops_cases import (
    ADD,
    LINEAR,
    TOLERANCE,
    Grid,
    Operands,
    expected_add,
    expected_linear,
    make_operands,
)
from ops_layouts import LAYOUTS, Layout, groups_apart, shifted
from ops_philox import keep_mask
from torch import Tensor

RNG_STATE = (12345, -678)
# Widths and tokens at which tiles begin and end.
EDGES = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 257, 511, 513, 1000, 1025]
DTYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
]
ALIGNED_LAYOUTS: dict[str, Layout] = {
    "contiguous": LAYOUTS["contiguous"],
    "groups_apart": groups_apart,
}
ANY_LAYOUT: dict[str, Layout] = {
    **LAYOUTS,
    **ALIGNED_LAYOUTS,
    **{f"shifted_{elements}": shifted(elements) for elements in range(1, 8)},
}


@dataclass(frozen=True)
class Configuration:
    """One call; `aligned`: sizes, layouts and dtypes are such that the kernels must run."""

    operator: str
    grid: Grid
    leading: tuple[int, ...]
    dtype: torch.dtype
    factor_dtype: torch.dtype
    bias: bool
    scaling: float
    dropout_p: float
    layouts: tuple[tuple[str, str], ...]
    seed: int
    aligned: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The differentiable operands."""
        return LINEAR if self.operator == "linear" else ADD

    def operands(self, device: torch.device) -> Operands:
        """Random values on the device, each operand in its layout."""
        torch.manual_seed(self.seed)
        operands = make_operands(
            self.grid,
            self.leading,
            dtype=self.dtype,
            factor_dtype=self.factor_dtype,
            device=device,
            bias=self.bias,
            scaling=self.scaling,
        )
        for name, layout in self.layouts:
            operands = operands.map(ANY_LAYOUT[layout], [name])
        return operands

    def run(self, operands: Operands) -> dict[str, Tensor]:
        """The operator's result and every gradient."""
        state = torch.tensor(RNG_STATE, device=operands.x.device) if self.dropout_p else None
        leaves = operands.requiring_grad(self.names)
        base = (leaves.x, leaves.weight, leaves.bias)
        inputs = base if self.operator == "linear" else (leaves.y, leaves.x)
        forward = getattr(torch.ops.gralora, f"{self.operator}_forward")
        numbers = {"scaling": self.scaling, "dropout_p": self.dropout_p}
        result = forward(*inputs, *leaves.factors(), state, **numbers)[0]
        given = leaves.named(self.names)
        gradients = torch.autograd.grad(result, list(given.values()), leaves.dy)
        return {"result": result.detach(), **dict(zip(given, gradients, strict=True))}

    def expected(self, operands: Operands) -> dict[str, Tensor]:
        """The same by the reference, in fp64."""
        tokens = math.prod(self.leading)
        keep = None
        if self.dropout_p:
            keep = keep_mask(torch.tensor(RNG_STATE), tokens, self.grid.N, self.dropout_p)
            keep = keep.to(operands.x.device)
        reference = expected_linear if self.operator == "linear" else expected_add
        result, gradients = reference(operands, keep, self.dropout_p)
        return {"result": result, **gradients}

    def assert_agreement(self, actual: dict[str, Tensor], operands: Operands) -> None:
        """Every result is within the tolerance, relative to what its terms add up to unsigned.

        Hypothesis finds the sums that cancel: their error relative to the sum has no bound.
        """
        exact = self.expected(operands)
        unsigned = operands.map(torch.abs, [*LINEAR, "y", "dy"])
        sizes = self.expected(replace(unsigned, scaling=abs(self.scaling)))
        assert actual.keys() == exact.keys()
        # y and its gradient are copied where nothing is added: the dtypes of all operands count.
        allowed = max(TOLERANCE[self.dtype], TOLERANCE[self.factor_dtype])
        for name, value in actual.items():
            assert value.shape == exact[name].shape, name
            error = torch.linalg.vector_norm(value.double() - exact[name])
            size = torch.linalg.vector_norm(sizes[name])
            assert error <= allowed * size, f"{name}: error {error:.2e}, terms of {size:.2e}"


@st.composite
def grids(draw: st.DrawFn, aligned: bool) -> Grid:
    """Grids of up to 16 x 16 blocks, up to about 600 wide; aligned: that the kernels can run."""
    step = 8 if aligned else 1
    has_grid = draw(st.sampled_from([True, True, True, False]))
    r0 = step * draw(st.integers(0 if has_grid else 1, 3))
    k_in, k_out = (draw(st.integers(1, 16)) if has_grid else 1 for _ in "io")
    n, m = (draw(st.integers(1, max(1, 600 // k // step))) * step for k in (k_in, k_out))
    # Rows of A hold k_out sub-ranks, and start on a boundary where those are a multiple of 8.
    unit = 8 // math.gcd(k_out, 8) if aligned else 1
    s = unit * draw(st.integers(1, max(1, 96 // unit // max(k_in, k_out)))) if has_grid else 0
    return Grid(k_in=k_in, k_out=k_out, n=n, m=m, s=s, r0=r0)


@st.composite
def shapes_of_tokens(draw: st.DrawFn, most: int) -> tuple[int, ...]:
    edges = [edge for edge in EDGES if edge <= most]
    tokens = draw(st.one_of(st.sampled_from(edges), st.integers(1, most)))
    shapes = [(tokens,), (1, tokens), (tokens, 1)]
    if tokens % 2 == 0:
        shapes.append((2, tokens // 2))
    return draw(st.sampled_from(shapes))


@st.composite
def configurations(draw: st.DrawFn, operator: str, most_tokens: int) -> Configuration:
    """Half of them are such that the kernels must run."""
    aligned = draw(st.booleans())
    dtype, factor_dtype = draw(st.sampled_from(DTYPES[:4] if aligned else DTYPES))
    layouts = sorted(ALIGNED_LAYOUTS if aligned else ANY_LAYOUT)
    names = (*(LINEAR if operator == "linear" else ADD), "dy")
    return Configuration(
        operator=operator,
        grid=draw(grids(aligned)),
        leading=draw(shapes_of_tokens(most_tokens)),
        dtype=dtype,
        factor_dtype=factor_dtype,
        bias=draw(st.booleans()),
        scaling=draw(st.sampled_from([0.125, 0.5, 1.0, -2.0])),
        dropout_p=draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 0.9])),
        layouts=tuple((name, draw(st.sampled_from(layouts))) for name in names),
        seed=draw(st.integers(0, 2**31)),
        aligned=aligned,
    )
