"""A weighted sum of layers of one grid by putting their ranks side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gralora.adapters.stored import StoredLayer
from gralora.adapters.sums import Part
from gralora.adapters.windows import scaled
from gralora.adapters.words import by
from gralora.nn.spec import make_spec
from gralora.storage.scale import bake


def concatenate(
    name: str,
    parts: Sequence[Part],
    *,
    r: int,
    scaling: float,
    hybrid_r: int,
    dropout: float,
    who: str,
) -> StoredLayer:
    """The layer whose blocks hold the ranks of all parts.

    Weights are multiplied into B and lora_B; A and lora_A keep every number.

    Args:
        name: of the layer, for errors.
        parts: at least one, of one shape.
        r: of the result, a multiple of ``k_in``; ranks beyond those of the parts are zero.
        scaling: of the result.
        hybrid_r: of the result, likewise.
        dropout: of the result.
        who: opens errors.

    Raises:
        ValueError: parts of different grids, or a product that overflows.

    """
    grids = {(layer.spec.k_out, layer.spec.k_in) for _, layer in parts}
    if len(grids) > 1:
        raise ValueError(
            f"{who}: ranks can be put side by side in equal grids only, got "
            f"{', '.join(by(*grid) for grid in sorted(grids))} for {name} "
            "(give a rank to approximate the sum in one grid)"
        )
    ((k_out, k_in),) = grids
    first = parts[0][1]
    in_features, out_features = first.in_features, first.out_features
    n, m = in_features // k_in, out_features // k_out
    where = f"{who}: {name}"
    granular_A, granular_B, plain_A, plain_B = [], [], [], []
    for weight, layer in parts:
        factor, s = weight * layer.spec.scaling / scaling, layer.spec.s
        granular_A.append(layer.A.reshape(k_in, n, k_out, s))
        granular_B.append(scaled(layer.B, factor, who=where).reshape(k_out, k_in, s, m))
        if layer.lora_A is not None and layer.lora_B is not None:
            plain_A.append(layer.lora_A)
            plain_B.append(scaled(layer.lora_B, factor, who=where))
    more = r // k_in - sum(layer.spec.s for _, layer in parts)
    granular_A.append(granular_A[0].new_zeros(k_in, n, k_out, more))
    granular_B.append(granular_B[0].new_zeros(k_out, k_in, more, m))
    A, B = torch.cat(granular_A, 3).flatten(2), torch.cat(granular_B, 2).flatten(1, 2)
    spec = make_spec(
        in_features,
        out_features,
        r=r,
        k=(k_out, k_in),
        alpha=bake(scaling, r + hybrid_r),
        hybrid_r=hybrid_r,
        dropout=dropout,
        use_rslora=False,
        who=where,
    )
    if not hybrid_r:
        return StoredLayer(spec, A, B)
    lora_A = torch.cat([*plain_A, _rest(plain_A, 0, hybrid_r, in_features, A)], 0)
    lora_B = torch.cat([*plain_B, _rest(plain_B, 1, hybrid_r, out_features, B)], 1)
    return StoredLayer(spec, A, B, lora_A, lora_B)


def _rest(factors: Sequence[Tensor], axis: int, wanted: int, width: int, like: Tensor) -> Tensor:
    """Zeros for the ranks along an axis that `factors` lack."""
    count = wanted - sum(factor.shape[axis] for factor in factors)
    return like.new_zeros((count, width) if axis == 0 else (width, count))
