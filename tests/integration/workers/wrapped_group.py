"""Networks over base layers that run themselves, the same in each process that trains them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from gralora import GraLoRAConfig, inject
from gralora.nn import GraLoRAWrapper

# As wide as the blocks of 4-bit weights are long.
IN, HIDDEN, OUT, ROWS = 64, 64, 32, 12


class Table(nn.Module):
    """Of no known class, but with sizes and a forward; its weight is `[in, out]`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.table = nn.Parameter(weight.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """``x table``."""
        return x @ self.table


def _bnb_int8(weight: Tensor) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


def _bnb_nf4(weight: Tensor) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        weight.shape[1], weight.shape[0], False, quant_type="nf4", compute_dtype=torch.float32
    )
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    return layer.to("cpu")


def _torchao_int8(weight: Tensor) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    quantize_(layer, Int8WeightOnlyConfig())
    return layer


# By the library that a kind needs, and what makes a layer of a weight [out, in].
BASES: dict[str, tuple[str | None, Callable[[Tensor], nn.Module]]] = {
    "other module": (None, Table),
    "bnb-int8": ("bitsandbytes", _bnb_int8),
    "bnb-nf4": ("bitsandbytes", _bnb_nf4),
    "torchao-int8": ("torchao", _torchao_int8),
}


def available() -> list[str]:
    """Kinds of base layers whose library is installed."""
    return [kind for kind, (library, _) in BASES.items() if library is None or find_spec(library)]


def wrapped(kind: str) -> nn.Module:
    """Two wrapped layers, hybrid, in training mode; the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    make = BASES[kind][1]
    network = nn.Sequential(make(normal(HIDDEN, IN)), nn.Tanh(), make(normal(OUT, HIDDEN)))
    inject(network, GraLoRAConfig(r=8, k=2, hybrid_r=2, target_modules=["0", "2"]))
    assert all(isinstance(network[index], GraLoRAWrapper) for index in (0, 2))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "_A." in name or "_B." in name:
                parameter.copy_(normal(*parameter.shape))
    return network.train()


def rows() -> tuple[Tensor, Tensor]:
    """The whole batch: inputs [ROWS, IN] and targets [ROWS, OUT]."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(ROWS, IN, generator=generator),
        torch.randn(ROWS, OUT, generator=generator),
    )


def train(network: nn.Module, x: Tensor, target: Tensor, steps: int = 3) -> None:
    """Steps of SGD on the mean squared error."""
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(x) - target).square().mean().backward()
        optimizer.step()


def adapters(network: nn.Module) -> dict[str, Tensor]:
    """What trains, by name."""
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
