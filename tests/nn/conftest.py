"""Shared pieces of the layer's tests: random adapters, a block-by-block ΔW, and state snapshots.

Makes `tests/nn/support` importable too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gralora import functional

SUPPORT = str(Path(__file__).parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

FACTORS = ("gralora_A", "gralora_B", "lora_A", "lora_B")


def _randomise(layer: nn.Module, seed: int = 0, names: Sequence[str] | None = None) -> nn.Module:
    """Fills every factor of the named adapters (all by default) with normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    for factor in FACTORS:
        for name, parameter in getattr(layer, factor).items():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if names is None or name in names:
                with torch.no_grad():
                    parameter.copy_(0.3 * values)
    return layer


def _dense_update(layer: nn.Module, name: str, scaling: float) -> Tensor:
    """ΔW [M, N] in fp64, one block after the other, from the definition of the grid."""
    A = layer.gralora_A[name].detach().double().cpu()
    B = layer.gralora_B[name].detach().double().cpu()
    k_in, n, columns = A.shape
    k_out, _, m = B.shape
    s = columns // k_out
    update = torch.zeros(k_out * m, k_in * n, dtype=torch.float64)
    for i in range(k_out):
        for j in range(k_in):
            down = A[j][:, i * s : (i + 1) * s]
            up = B[i][j * s : (j + 1) * s, :]
            update[i * m : (i + 1) * m, j * n : (j + 1) * n] = (down @ up).T
    if name in layer.lora_A:
        update += (layer.lora_B[name].double() @ layer.lora_A[name].double()).detach().cpu()
    return scaling * update


def _snapshot(layer: nn.Module) -> dict[str, Any]:
    """Everything about a layer that a failed call must leave as it was."""
    return {
        "values": {key: value.detach().clone() for key, value in layer.named_parameters()},
        "identity": {key: id(value) for key, value in layer.named_parameters()},
        "requires_grad": {key: value.requires_grad for key, value in layer.named_parameters()},
        "adapters": dict(layer.adapters),
        "active": list(layer.active_adapters),
        "merged": list(layer.merged_adapters),
        "training": layer.training,
        "text": layer.extra_repr(),
    }


def _assert_same_state(layer: nn.Module, before: dict[str, Any]) -> None:
    after = _snapshot(layer)
    assert after["values"].keys() == before["values"].keys()
    for key, value in before["values"].items():
        assert torch.equal(after["values"][key].nan_to_num(), value.nan_to_num()), key
    assert {k: v for k, v in after.items() if k != "values"} == {
        k: v for k, v in before.items() if k != "values"
    }


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    """``randomise(layer, seed=0, names=None)``: gives the adapters an update that is not zero."""
    return _randomise


@pytest.fixture
def dense_update() -> Callable[[nn.Module, str, float], Tensor]:
    """``dense_update(layer, name, scaling)``: ΔW [M, N] in fp64 on the CPU, block by block."""
    return _dense_update


@pytest.fixture
def snapshot() -> Callable[[nn.Module], dict[str, Any]]:
    """``snapshot(layer)``: values, identities and attributes, to compare with later."""
    return _snapshot


@pytest.fixture
def assert_same_state() -> Callable[[nn.Module, dict[str, Any]], None]:
    """``assert_same_state(layer, before)``: fails where the layer differs from its snapshot."""
    return _assert_same_state


@pytest.fixture
def kaiming_bound() -> Callable[[int], float]:
    """``kaiming_bound(fan_in)``: the largest magnitude that Kaiming-uniform with a = √5 draws."""
    return lambda fan_in: math.sqrt(6.0 / ((1.0 + 5.0) * fan_in))


@pytest.fixture
def group_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call of the operator for groups computed, in the order of the calls."""
    sizes: list[int] = []
    compute = functional.gralora_linear_group

    def counted(x: Tensor, weights: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(weights))
        return compute(x, weights, *args, **kwargs)

    monkeypatch.setattr(functional, "gralora_linear_group", counted)
    return sizes
