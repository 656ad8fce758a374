"""Groups of layers that read the same input: operands, and what they must give."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import gralora.reference

SCALING = 0.75


@dataclass(frozen=True)
class GroupShape:
    """Layers of one grid along the input; `outputs` are each layer's (k_out, m)."""

    k_in: int
    n: int
    s: int
    outputs: tuple[tuple[int, int], ...]
    biased: tuple[bool, ...]


SHAPES = {
    "qkv": GroupShape(4, 16, 8, ((4, 16), (4, 8), (4, 8)), (False, False, False)),
    "qkv_biased": GroupShape(2, 24, 8, ((4, 16), (2, 8), (1, 24)), (True, False, True)),
    "gate_up": GroupShape(2, 16, 8, ((2, 40), (2, 40)), (False, False)),
    "lora": GroupShape(1, 40, 16, ((1, 24), (1, 8)), (True, True)),
    "odd": GroupShape(3, 5, 3, ((2, 7), (5, 1), (1, 9)), (False, True, False)),
    "alone": GroupShape(2, 8, 4, ((2, 8),), (True,)),
}


@dataclass(frozen=True)
class Group:
    """The tensors of one call."""

    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor | None]
    A: list[Tensor]
    B: list[Tensor]
    dy: list[Tensor]

    def leaves(self) -> list[Tensor]:
        """What is differentiated: x, every A, every B."""
        return [self.x, *self.A, *self.B]

    def to(self, dtype: torch.dtype) -> Group:
        """The same values in `dtype`, on new leaves."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_()

        return replace(
            self,
            x=leaf(self.x),
            weights=[weight.to(dtype) for weight in self.weights],
            biases=[None if bias is None else bias.to(dtype) for bias in self.biases],
            A=[leaf(factor) for factor in self.A],
            B=[leaf(factor) for factor in self.B],
            dy=[gradient.to(dtype) for gradient in self.dy],
        )


def make_group(
    shape: GroupShape,
    lead: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float64,
    factor_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Group:
    """Random operands whose products are of the size of one."""

    def random(*sizes: int, scale: float = 1.0, of: torch.dtype = dtype) -> Tensor:
        return (torch.randn(sizes, device=device) * scale).to(of)

    N = shape.k_in * shape.n
    rank = shape.k_in * shape.s
    factor_dtype = factor_dtype or dtype
    widths = [k_out * m for k_out, m in shape.outputs]
    return Group(
        x=random(*lead, N).requires_grad_(),
        weights=[random(width, N, scale=N**-0.5) for width in widths],
        biases=[
            random(width) if has else None
            for width, has in zip(widths, shape.biased, strict=True)
        ],
        A=[
            random(shape.k_in, shape.n, k_out * shape.s, scale=N**-0.5, of=factor_dtype)
            .requires_grad_()
            for k_out, _ in shape.outputs
        ],
        B=[
            random(k_out, rank, m, scale=rank**-0.5, of=factor_dtype).requires_grad_()
            for k_out, m in shape.outputs
        ],
        dy=[random(*lead, width) for width in widths],
    )  # fmt: skip


def run_group(group: Group) -> tuple[list[Tensor], list[Tensor]]:
    """The product's outputs, and the gradients of its leaves."""
    ys = torch.ops.gralora.linear_group(
        group.x, group.weights, group.biases, group.A, group.B, scaling=SCALING
    )
    return list(ys), list(torch.autograd.grad(ys, group.leaves(), group.dy))


def expected_outputs(exact: Group) -> list[Tensor]:
    """Each layer by its reference."""
    return [
        gralora.reference.linear(exact.x, weight, bias, A, B, scaling=SCALING)
        for weight, bias, A, B in zip(exact.weights, exact.biases, exact.A, exact.B, strict=True)
    ]


def expected_group(group: Group) -> tuple[list[Tensor], list[Tensor]]:
    """The same by the reference of each layer, in fp64."""
    exact = group.to(torch.float64)
    ys = expected_outputs(exact)
    return ys, list(torch.autograd.grad(ys, exact.leaves(), exact.dy))
