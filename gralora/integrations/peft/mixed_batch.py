"""A batch whose rows use different adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gralora.integrations.peft.factors import Factors, add


def add_by_row(
    y: Tensor, x: Tensor, adapter_names: Sequence[str], factors: Mapping[str, Factors]
) -> Tensor:
    """Add to each row of y the output of that row's adapter.

    Args:
        y: ``[rows, ..., M]``, the base layer's output; it is not written to.
        x: ``[rows, ..., N]``, the base layer's input.
        adapter_names: one for each row; names without factors leave their row as it is.
        factors: by adapter.

    Returns:
        ``[rows, ..., M]`` in y's dtype.

    """
    if len(factors) == 1 and all(name in factors for name in adapter_names):
        return add(factors[adapter_names[0]], y, x)
    result = y.clone()
    for name, each in factors.items():
        rows = torch.tensor(
            [row for row, other in enumerate(adapter_names) if other == name], device=x.device
        )
        result = result.index_copy(
            0, rows, add(each, y.index_select(0, rows), x.index_select(0, rows))
        )
    return result
