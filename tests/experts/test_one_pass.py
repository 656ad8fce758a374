"""Adapters of all experts are computed together: no step is taken for each expert."""

from __future__ import annotations

from collections import Counter

import torch
from expert_models import fill
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from gralora.nn import GraLoRAExperts


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def calls_of_a_step(experts: int) -> Counter[str]:
    config = MixtralConfig(hidden_size=16, intermediate_size=16, num_local_experts=experts)
    base = MixtralExperts(config)
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    module = GraLoRAExperts(base)
    for weights in module.weights.values():
        weights.add_adapter("default", r=4, k=2)
        weights.set_adapter("default")
    fill(module)
    index = torch.arange(16).reshape(8, 2) % experts
    with _Calls() as calls:
        module(torch.randn(8, 16, requires_grad=True), index, torch.rand(8, 2)).sum().backward()
    return calls.counts


def test_a_step_has_as_many_operations_for_many_experts_as_for_few():
    few = calls_of_a_step(2)
    assert few == calls_of_a_step(16)
    assert few["aten._grouped_mm.default"] > 0
