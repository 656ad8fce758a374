"""Three projections of one module, as an attention has them, together or each by itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import gralora
from gralora.nn import GraLoRALinear

WIDTH = 16
NAMES = ("q", "k", "v")
GROUP = (NAMES,)


class Siblings(nn.Module):
    """q, k and v; the last two are half as wide, as with grouped queries."""

    def __init__(self, bias: bool = False, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        adapter = {"r": 4, "k": 2, "bias": bias} | settings
        self.q = GraLoRALinear(WIDTH, WIDTH, **adapter)
        self.k = GraLoRALinear(WIDTH, WIDTH // 2, **adapter)
        self.v = GraLoRALinear(WIDTH, WIDTH // 2, **adapter)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q of x, and k and v of x too, or of a context."""
        context = x if context is None else context
        return self.q(x), self.k(context), self.v(context)


def together(**settings: Any) -> Siblings:
    """Siblings that are computed together."""
    siblings = Siblings(**settings)
    assert gralora.share_inputs(siblings, groups=GROUP) == 1
    return siblings


def apart(siblings: nn.Module) -> Any:
    """A copy of which each layer computes by itself."""
    copied = copy.deepcopy(siblings)
    gralora.share_inputs(copied, groups=())
    return copied


def tokens(*shape: int, seed: int = 1, **options: Any) -> Tensor:
    """Normal numbers ``[*shape, WIDTH]``; five tokens where no shape is given."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*(shape or (5,)), WIDTH, generator=generator)
    return x.to(**options) if options else x


def gradients(siblings: nn.Module, x: Tensor, loss: Any) -> dict[str, Tensor | None]:
    """What a loss of the three outputs gives to x and to each parameter that trains."""
    x = x.detach().clone().requires_grad_()
    siblings.zero_grad()
    loss(*siblings(x)).backward()
    named = {name: p.grad for name, p in siblings.named_parameters() if p.requires_grad}
    return {"x": x.grad, **named}


def assert_same(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    """Fails where one has a gradient that the other lacks, or another one."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(actual[name], value, msg=name)


def state(siblings: Siblings) -> str:
    """Name of what the group of the siblings does now."""
    return siblings.q._shared_input.state.name
