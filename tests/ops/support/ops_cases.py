"""Grids, operands and what they must give, for the tests of the operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from ops_philox import dropout_scale
from torch import Tensor

import gralora.reference

FACTORS = ("A", "B", "lora_A", "lora_B")
LINEAR = ("x", "weight", "bias", *FACTORS)
ADD = ("y", "x", *FACTORS)

# Relative Frobenius error allowed against fp64. The factors, H, G and the result are each rounded
# once to the compute dtype, so a few units of its last place.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}


@dataclass(frozen=True)
class Grid:
    """The shape of an adapter; `s = 0` leaves A and B out, `r0 = 0` the plain pair."""

    k_in: int = 1
    k_out: int = 1
    n: int = 1
    m: int = 1
    s: int = 0
    r0: int = 0

    @property
    def N(self) -> int:  # noqa: N802
        return self.k_in * self.n

    @property
    def M(self) -> int:  # noqa: N802
        return self.k_out * self.m

    @property
    def name(self) -> str:
        blocks = f"{self.k_out}x{self.k_in}of{self.m}x{self.n}"
        return f"{blocks}_s{self.s}" + (f"_r0{self.r0}" if self.r0 else "")


GRIDS = {
    "square": Grid(k_in=4, k_out=4, n=6, m=5, s=3),
    "wide": Grid(k_in=4, k_out=2, n=5, m=7, s=3),
    "tall": Grid(k_in=2, k_out=6, n=7, m=3, s=2),
    "one_input_block": Grid(k_in=1, k_out=3, n=10, m=4, s=5),
    "one_output_block": Grid(k_in=5, k_out=1, n=4, m=9, s=2),
    "sub_rank_above_block": Grid(k_in=3, k_out=2, n=3, m=4, s=7),
    "single_columns": Grid(k_in=6, k_out=5, n=1, m=1, s=2),
    "lora": Grid(k_in=1, k_out=1, n=11, m=13, s=4),
    "aligned": Grid(k_in=2, k_out=2, n=16, m=24, s=8),
    "hybrid": Grid(k_in=2, k_out=2, n=8, m=5, s=3, r0=5),
    "hybrid_rectangular": Grid(k_in=3, k_out=2, n=4, m=9, s=2, r0=8),
    "plain_pair_alone": Grid(k_in=1, k_out=1, n=9, m=14, s=0, r0=6),
}


@dataclass(frozen=True)
class Operands:
    """The tensors of one call."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    A: Tensor | None
    B: Tensor | None
    lora_A: Tensor | None  # noqa: N815
    lora_B: Tensor | None  # noqa: N815
    dy: Tensor
    scaling: float = 0.75
    y: Tensor = field(default_factory=lambda: torch.empty(0))

    def named(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The operands of `names` that are present."""
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor], names: Iterable[str]) -> Operands:
        """The same call with `change` applied to each operand of `names` that is present."""
        return replace(self, **{k: change(v) for k, v in self.named(names).items()})

    def requiring_grad(self, names: Iterable[str]) -> Operands:
        """The same call on new leaves (of the same strides) that require a gradient."""
        return self.map(lambda t: t.detach().requires_grad_(), names)

    def factors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.A, self.B, self.lora_A, self.lora_B

    def linear(self, **options: object) -> Tensor:
        """The product's `y = x W^T + b + delta(x)`."""
        return torch.ops.gralora.linear(
            self.x, self.weight, self.bias, *self.factors(), scaling=self.scaling, **options
        )

    def add(self, **options: object) -> Tensor:
        """The product's `y + delta(x)`."""
        return torch.ops.gralora.add(
            self.y, self.x, *self.factors(), scaling=self.scaling, **options
        )


def make_operands(
    grid: Grid,
    leading: tuple[int, ...] = (7,),
    *,
    dtype: torch.dtype = torch.float64,
    factor_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    bias: bool = True,
    scaling: float = 0.75,
) -> Operands:
    """Random operands with values of about 1 in every term of the result."""

    def draw(*shape: int, of: torch.dtype, size: float = 1.0) -> Tensor:
        values = torch.randn(*shape, dtype=torch.float64) * size
        return values.to(device=device, dtype=of)

    of_factors = factor_dtype or dtype
    N, M, s, r0 = grid.N, grid.M, grid.s, grid.r0
    A = B = lora_A = lora_B = None
    if s:
        A = draw(grid.k_in, grid.n, grid.k_out * s, of=of_factors, size=grid.n**-0.5)
        r = grid.k_in * s
        B = draw(grid.k_out, r, grid.m, of=of_factors, size=r**-0.5)
    if r0:
        lora_A = draw(r0, N, of=of_factors, size=N**-0.5)
        lora_B = draw(M, r0, of=of_factors, size=r0**-0.5)
    return Operands(
        x=draw(*leading, N, of=dtype),
        weight=draw(M, N, of=dtype, size=N**-0.5),
        bias=draw(M, of=dtype) if bias else None,
        A=A,
        B=B,
        lora_A=lora_A,
        lora_B=lora_B,
        dy=draw(*leading, M, of=dtype),
        scaling=scaling,
        y=draw(*leading, M, of=dtype),
    )


def _leaf(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().double().requires_grad_()


def expected_delta(leaves: Operands, keep: Tensor | None, p: float) -> Tensor:
    """`delta(x)` by the reference, with the dropout of a given bool mask [T, N]."""
    x = leaves.x
    if keep is not None:
        x = x * keep.to(x).reshape(x.shape) * dropout_scale(p)
    return gralora.reference.linear(
        x,
        torch.zeros_like(leaves.weight, dtype=torch.float64),
        None,
        leaves.A,
        leaves.B,
        scaling=leaves.scaling,
        lora_A=leaves.lora_A,
        lora_B=leaves.lora_B,
    )


def expected_linear(
    operands: Operands, keep: Tensor | None = None, p: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The result and every gradient of `linear`, in fp64 from exactly these values."""
    leaves = operands.map(_leaf, LINEAR)
    base = torch.nn.functional.linear(leaves.x, leaves.weight, leaves.bias)
    return _with_gradients(base + expected_delta(leaves, keep, p), leaves, operands.dy, LINEAR)


def expected_add(
    operands: Operands, keep: Tensor | None = None, p: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The result and every gradient of `add`, in fp64 from exactly these values."""
    leaves = operands.map(_leaf, ADD)
    return _with_gradients(leaves.y + expected_delta(leaves, keep, p), leaves, operands.dy, ADD)


def _with_gradients(
    result: Tensor, leaves: Operands, dy: Tensor, names: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    given = leaves.named(names)
    gradients = torch.autograd.grad(result, list(given.values()), dy.double())
    return result.detach(), dict(zip(given, gradients, strict=True))


def run_linear(operands: Operands, **options: object) -> tuple[Tensor, dict[str, Tensor]]:
    """The product's result and every gradient of `linear`."""
    return _run(operands, LINEAR, lambda leaves: leaves.linear(**options))


def run_add(operands: Operands, **options: object) -> tuple[Tensor, dict[str, Tensor]]:
    """The product's result and every gradient of `add`."""
    return _run(operands, ADD, lambda leaves: leaves.add(**options))


def _run(
    operands: Operands, names: Iterable[str], call: Callable[[Operands], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = operands.requiring_grad(names)
    result = call(leaves)
    given = leaves.named(names)
    gradients = torch.autograd.grad(result, list(given.values()), operands.dy)
    return result.detach(), dict(zip(given, gradients, strict=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius error relative to the expected norm; NaN where the result holds one."""
    exact = expected.detach().double()
    difference = torch.linalg.vector_norm(actual.detach().double() - exact)
    norm = torch.linalg.vector_norm(exact)
    return float(difference / norm) if norm > 0 else float(difference)


def assert_close(
    actual: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None, name: str = "result"
) -> None:
    """`actual` has the expected shape, and its values to the accuracy of the compute dtype."""
    assert actual.shape == expected.shape, f"{name}: {actual.shape} for {expected.shape}"
    error = relative_error(actual, expected)
    allowed = TOLERANCE[dtype or actual.dtype]
    assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.1e}"


def assert_gradients_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], *, dtype: torch.dtype
) -> None:
    """Every gradient is there, and has the expected values."""
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], dtype=dtype, name=f"d{name}")


def dense(delta: Tensor, operands: Operands) -> Tensor:
    """`x (W + delta)^T + b` in fp64."""
    bias = None if operands.bias is None else operands.bias.double()
    weight = operands.weight.double() + delta.to(operands.weight.device)
    return torch.nn.functional.linear(operands.x.double(), weight, bias)
