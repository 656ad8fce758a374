"""smoke.py cpu|cuda: the installed package trains, and was built for what is expected."""

from __future__ import annotations

import sys

import torch

from gralora import _build_info
from gralora.nn import GraLoRALinear


def main(kind: str) -> None:
    """One training step, then a merge that must give the same output."""
    assert (kind == "cuda") == _build_info.CUDA_BUILT, _build_info.REASON
    torch.manual_seed(0)
    layer = GraLoRALinear(64, 32, r=8, k=2)
    x = torch.randn(5, 64)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    before = layer(x).square().mean()
    before.backward()
    optimizer.step()
    trained = layer(x)
    assert trained.square().mean() < before
    layer.merge()
    torch.testing.assert_close(layer(x), trained)
    built = [_build_info.TORCH_VERSION, _build_info.CUDA_VERSION, *_build_info.CUDA_ARCHITECTURES]
    print("works, built for", *filter(None, built))


if __name__ == "__main__":
    main(sys.argv[1])
