"""Products of rows that are sorted by group with one matrix for each group.

One call serves all groups. Float32, bfloat16 and float16 take torch's grouped product, whose
operands must have rows of whole 16-byte steps: others are filled up with zeros. Float64, which that
product lacks, takes a batched one over groups that are filled up to the longest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

# Bytes that a row of a grouped product's operand must be a multiple of.
_STEP = 16
_GROUPED = (torch.float32, torch.bfloat16, torch.float16)


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """``y[t] = x[t] @ weight[g]`` for every row t of group g.

    Args:
        x: ``[S, K]``, the rows of group 0 first, then those of group 1, and so on.
        weight: ``[G, K, R]`` in x's dtype, any strides.
        ends: ``[G]`` int32, where each group's rows end; the last is S.

    Returns:
        ``[S, R]`` in x's dtype. Differentiable once by x and weight; the gradient of a group
        without rows is zero.

    """
    apply: Any = _GroupedProduct.apply  # typed in some versions of torch alone
    result: Tensor = apply(x, weight, ends)
    return result


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        # A frozen weight needs no rows, and they are the larger part.
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None, ends)
        return _rows_product(x, weight, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, ends = ctx.saved_tensors
        dx = None if weight is None else _rows_product(dy, weight.transpose(1, 2), ends)
        dweight = None if x is None else _outer_product(x, dy, ends)
        return dx, dweight, None


def _rows_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return (_opaque_multiply if is_compiling() else _multiply)(x, weight, ends)


def _outer_product(x: Tensor, dy: Tensor, ends: Tensor) -> Tensor:
    return (_opaque_outer if is_compiling() else _outer)(x, dy, ends)


def _multiply(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """``[S, R]`` of ``x [S, K]`` and ``weight [G, K, R]``."""
    rows, width = x.shape[0], weight.shape[2]
    if not rows:
        return x.new_zeros(0, width)
    if x.dtype not in _GROUPED:
        places = _Places.of(ends, rows)
        return torch.bmm(places.spread(x), weight).flatten(0, 1)[places.rows]
    y = torch.nn.functional.grouped_mm(_whole_rows(x), _whole_matrices(weight), offs=ends)
    return y[:, :width].contiguous()


def _outer(x: Tensor, dy: Tensor, ends: Tensor) -> Tensor:
    """``[G, K, R]``: of each group ``xᵀ dy``."""
    rows, shape = x.shape[0], (ends.shape[0], x.shape[1], dy.shape[1])
    if not rows:
        return x.new_zeros(shape)
    if x.dtype not in _GROUPED:
        places = _Places.of(ends, rows)
        return torch.bmm(places.spread(x).transpose(1, 2), places.spread(dy))
    dweight = torch.nn.functional.grouped_mm(_whole_rows(x).t(), _whole_rows(dy), offs=ends)
    return dweight[:, : shape[1], : shape[2]].contiguous()


# The compiler cannot trace torch's grouped product in all of its dtypes, and need not: to it, these
# are operators of their own. In eager calls they would only take time.
_opaque_multiply = torch.library.custom_op(
    "gralora_experts::product",
    _multiply,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor ends) -> Tensor",
)
_opaque_outer = torch.library.custom_op(
    "gralora_experts::outer",
    _outer,
    mutates_args=(),
    schema="(Tensor x, Tensor dy, Tensor ends) -> Tensor",
)


@_opaque_multiply.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@_opaque_outer.register_fake
def _(x: Tensor, dy: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], x.shape[1], dy.shape[1])


def _missing(width: int, dtype: torch.dtype) -> int:
    """Elements that a row of `width` lacks to whole steps."""
    return -width % (_STEP // dtype.itemsize)


def _whole_rows(x: Tensor) -> Tensor:
    """``[S, K']``, contiguous rows of whole steps."""
    missing = _missing(x.shape[1], x.dtype)
    return torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def _whole_matrices(weight: Tensor) -> Tensor:
    """``[G, K', R']``, whose rows or columns are contiguous and of whole steps."""
    missing = [_missing(width, weight.dtype) for width in weight.shape[1:]]
    if any(missing):
        return torch.nn.functional.pad(weight, (0, missing[1], 0, missing[0]))
    _, rows, columns = weight.shape
    of_rows, of_columns = weight.stride()[1:]
    # As they lie where that is allowed: a frozen weight is too large to be copied in each call.
    if (of_columns == 1 and of_rows == columns) or (of_rows == 1 and of_columns == rows):
        return weight
    return weight.contiguous()


class _Places(NamedTuple):
    """Where rows stand in groups of equal length.

    ``rows`` is ``[S]``, into the groups one after the other.
    """

    rows: Tensor
    groups: int
    longest: int

    @classmethod
    def of(cls, ends: Tensor, rows: int) -> _Places:
        ends = ends.long()
        starts = torch.nn.functional.pad(ends[:-1], (1, 0))
        row = torch.arange(rows, device=ends.device)
        group = torch.searchsorted(ends, row, right=True)
        longest = int((ends - starts).max())
        return cls(group * longest + row - starts[group], len(ends), longest)

    def spread(self, x: Tensor) -> Tensor:
        """``[G, longest, K]`` of ``[S, K]``, zero where a group has no row."""
        spread = x.new_zeros(self.groups * self.longest, x.shape[1])
        spread[self.rows] = x
        return spread.view(self.groups, self.longest, x.shape[1])
