"""Layers of adapters with random factors, and their ΔW by plain loops over blocks in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gralora.adapters.stored import StoredLayer
from gralora.nn.spec import make_spec


def random_layer(
    in_features: int = 24,
    out_features: int = 36,
    *,
    r: int = 8,
    k: Any = 2,
    alpha: float = 12.0,
    hybrid_r: int = 0,
    use_rslora: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> StoredLayer:
    """A layer whose factors are all random, B included."""
    spec = make_spec(
        in_features,
        out_features,
        r=r,
        k=k,
        alpha=alpha,
        hybrid_r=hybrid_r,
        dropout=0.0,
        use_rslora=use_rslora,
    )
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return StoredLayer(
        spec,
        factor(spec.k_in, in_features // spec.k_in, spec.k_out * spec.s),
        factor(spec.k_out, spec.r, out_features // spec.k_out),
        factor(hybrid_r, in_features) if hybrid_r else None,
        factor(out_features, hybrid_r) if hybrid_r else None,
    )


def dense(layer: StoredLayer) -> Tensor:
    """ΔW ``[M, N]`` in float64, block by block."""
    spec, s = layer.spec, layer.spec.s
    A, B = layer.A.double(), layer.B.double()
    n, m = A.shape[1], B.shape[2]
    result = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    for i in range(spec.k_out):
        for j in range(spec.k_in):
            block = B[i, j * s : (j + 1) * s].T @ A[j, :, i * s : (i + 1) * s].T
            result[i * m : (i + 1) * m, j * n : (j + 1) * n] = block
    if layer.lora_A is not None and layer.lora_B is not None:
        result += layer.lora_B.double() @ layer.lora_A.double()
    return spec.scaling * result


SHAPES: dict[str, dict[str, Any]] = {
    "square": {"k": 2},
    "one block": {"k": 1, "r": 5},
    "rectangular": {"k": (3, 4)},
    "hybrid": {"k": (4, 2), "hybrid_r": 3},
    "wider than the layer": {"k": (4, 2), "r": 32, "hybrid_r": 5, "in_features": 8},
    "rsLoRA": {"k": 4, "use_rslora": True},
}
