"""Builds one of PEFT's layers and one of ours with the same numbers, and runs them side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from peft import GraloraConfig, LoraConfig
from peft.tuners.gralora.layer import Linear as PeftGralora
from peft.tuners.lora.layer import Linear as PeftLora
from torch import Tensor, nn

from gralora.nn import GraLoRALinear

RANDOM = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Case:
    """One random configuration; widths are given per block, so that every grid fits."""

    k: int
    s: int
    n: int
    m: int
    hybrid_r: int
    alpha: int
    bias: bool
    leading: tuple[int, ...]
    seed: int

    @property
    def in_features(self) -> int:
        return self.k * self.n

    @property
    def out_features(self) -> int:
        return self.k * self.m

    @property
    def r(self) -> int:
        return self.k * self.s


def cases(hybrid: bool = True, square_only: bool = False) -> st.SearchStrategy[Case]:
    """Configurations that PEFT takes too: inputs of 2 or 3 dimensions, at least one token."""
    return st.builds(
        Case,
        k=st.just(1) if square_only else st.integers(1, 5),
        s=st.integers(1, 6),
        n=st.integers(1, 12),
        m=st.integers(1, 12),
        hybrid_r=st.integers(0, 4) if hybrid else st.just(0),
        alpha=st.integers(1, 64),
        bias=st.booleans(),
        leading=st.lists(st.integers(1, 7), min_size=1, max_size=2).map(tuple),
        seed=st.integers(0, 2**31 - 1),
    )


@dataclass
class Pair:
    """Both layers, and the factors of each under one name, ours laid out as PEFT's."""

    ours: GraLoRALinear
    theirs: nn.Module
    our_factors: dict[str, Tensor] = field(default_factory=dict)
    their_factors: dict[str, Tensor] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()

    def to(self, *, base: torch.dtype, factors: torch.dtype, device: torch.device | str) -> Pair:
        """The same numbers in other dtypes, the base and the factors each in its own."""
        for layer in (self.ours, self.theirs):
            frozen = {id(p) for p in layer.parameters()} - {
                id(p) for group in (self.our_factors, self.their_factors) for p in group.values()
            }
            for parameter in layer.parameters():
                dtype = base if id(parameter) in frozen else factors
                parameter.data = parameter.data.to(device=device, dtype=dtype)
        return self

    def like_theirs(self, name: str, value: Tensor) -> Tensor:
        """A tensor shaped as our factor ``name``, in the layout of PEFT's."""
        return value.squeeze(0).T if name in self.transposed else value


def _linear(case: Case) -> nn.Linear:
    torch.manual_seed(case.seed)
    return nn.Linear(case.in_features, case.out_features, bias=case.bias, dtype=torch.float64)


def _copy_of(linear: nn.Linear) -> nn.Linear:
    other = nn.Linear(
        linear.in_features, linear.out_features, bias=linear.bias is not None, dtype=torch.float64
    )
    other.load_state_dict(linear.state_dict())
    return other.requires_grad_(False)


def gralora_pair(case: Case) -> Pair:
    """PEFT's GraLoRA layer and ours, in fp64, neither update zero."""
    linear = _linear(case)
    config = GraloraConfig(
        r=case.r,
        hybrid_r=case.hybrid_r,
        gralora_k=case.k,
        alpha=case.alpha,
        gralora_dropout=0.0,
        init_weights=False,
    )
    theirs = PeftGralora(_copy_of(linear), "default", "module", config, r=case.r)
    ours = GraLoRALinear.from_linear(
        linear, r=case.r, k=case.k, alpha=case.alpha, hybrid_r=case.hybrid_r
    )
    pair = Pair(ours, theirs)
    pair.our_factors = {"A": ours.gralora_A["default"], "B": ours.gralora_B["default"]}
    pair.their_factors = {"A": theirs.gralora_A["default"], "B": theirs.gralora_B["default"]}
    if case.hybrid_r:
        pair.our_factors |= {"lora_A": ours.lora_A["default"], "lora_B": ours.lora_B["default"]}
        pair.their_factors |= {
            "lora_A": theirs.gralora_A_general["default"].weight,
            "lora_B": theirs.gralora_B_general["default"].weight,
        }
    for name, parameter in pair.our_factors.items():
        parameter.data = pair.their_factors[name].detach().double().clone()
    return pair


def lora_pair(case: Case, use_rslora: bool = False) -> Pair:
    """PEFT's LoRA layer and ours with k = 1, in fp64, neither update zero."""
    linear = _linear(case)
    config = LoraConfig(
        r=case.r, lora_alpha=case.alpha, use_rslora=use_rslora, init_lora_weights=False
    )
    theirs = PeftLora(_copy_of(linear), "default", config, r=case.r, lora_alpha=case.alpha)
    ours = GraLoRALinear.from_linear(linear, r=case.r, k=1, alpha=case.alpha, use_rslora=use_rslora)
    pair = Pair(ours, theirs, transposed=frozenset({"A", "B"}))
    pair.our_factors = {"A": ours.gralora_A["default"], "B": ours.gralora_B["default"]}
    pair.their_factors = {
        "A": theirs.lora_A["default"].weight,
        "B": theirs.lora_B["default"].weight,
    }
    for name, parameter in pair.our_factors.items():
        parameter.data = pair.their_factors[name].detach().double().T.contiguous()[None]
    return pair


def step(layer: nn.Module, factors: dict[str, Tensor], x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """One forward and backward: the output, and the gradients of the input and the factors."""
    x = x.detach().clone().requires_grad_(True)
    y = layer(x)
    names = list(factors)
    grads = torch.autograd.grad(y, [x, *(factors[name] for name in names)], dy.to(y.dtype))
    return {"y": y.detach(), "x": grads[0], **dict(zip(names, grads[1:], strict=True))}


def inputs(case: Case, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """An input and an output gradient of the case, rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(case.seed)
    shapes = ((*case.leading, case.in_features), (*case.leading, case.out_features))
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x.to(device, dtype), dy.to(device, dtype)
