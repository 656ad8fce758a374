"""Times frozen experts of transformers, and the same with an adapter for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gralora import reference
from gralora.bench.agreement import ROWS, relative_error
from gralora.bench.case import SCALING, UnavailableError, Variant, first_line
from gralora.bench.experts_case import ExpertsCase
from gralora.bench.harness import random_tensor
from gralora.bench.layer import PASSES, Settings, draw_operands, time_variants
from gralora.bench.layer_records import Recorder

# In the order of the tables.
VARIANTS = ("base", "peft_lora", "gralora", "gralora_fp32")
_PARAMETERS = ("gate_up_proj", "down_proj")


class Routed(nn.Module):
    """Experts with a router that always decides the same.

    Args:
        experts: takes ``[T, hidden]``, the chosen experts and their weights.
        index: ``[T, chosen]``, a choice for each token.
        shares: ``[T, chosen]``.

    """

    def __init__(self, experts: nn.Module, index: Tensor, shares: Tensor) -> None:
        super().__init__()
        self.experts, self.index, self.shares = experts, index, shares

    def forward(self, x: Tensor) -> Tensor:
        """``[1, T, hidden]`` to the same."""
        tokens = x.shape[1]
        y: Tensor = self.experts(x[0], self.index[:tokens], self.shares[:tokens])
        return y[None]


def run_experts(case: ExpertsCase, settings: Settings, recorder: Recorder) -> None:
    """Build every variant of ``case``, check it, and take times."""
    torch.manual_seed(0)
    try:
        experts = _frozen(case, settings.device)
    except UnavailableError as reason:
        recorder.skip(case.base, case, str(reason))
        return
    logits = torch.rand(max(case.tokens, ROWS), case.experts, device=settings.device)
    shares, index = logits.topk(case.chosen)
    shares = (shares / shares.sum(1, keepdim=True)).to(case.torch_dtype)
    variants = []
    for name in settings.variants:
        if name not in _BUILDERS:
            continue
        try:
            variant = _BUILDERS[name](case, Routed(experts, index, shares))
        except UnavailableError as reason:
            recorder.skip(name, case, str(reason))
            continue
        if not variant.is_gralora or recorder.accepts(name, case, _errors(case, variant)):
            variants.append(variant)
    time_variants(
        case, variants, draw_operands(case, 1, settings.device), PASSES, settings, recorder
    )


def _frozen(case: ExpertsCase, device: torch.device) -> nn.Module:
    """Experts of Mixtral with random weights, by transformers' own grouped implementation."""
    try:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    except ImportError as error:
        raise UnavailableError(f"transformers 5 cannot be imported: {error}") from error
    config = MixtralConfig(
        hidden_size=case.in_features,
        intermediate_size=case.out_features,
        num_local_experts=case.experts,
        num_experts_per_tok=case.chosen,
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        experts: Any = MixtralExperts(config)
    experts = experts.to(case.torch_dtype).to_empty(device=device).requires_grad_(False)
    x = torch.ones(1, case.in_features, dtype=case.torch_dtype, device=device)
    try:
        for parameter in experts.parameters():
            parameter.normal_(std=parameter.shape[2] ** -0.5)
        experts(x, torch.zeros(1, 1, dtype=torch.long, device=device), x[:, :1])
    except RuntimeError as error:
        raise UnavailableError(f"transformers' experts: {first_line(error)}") from error
    result: nn.Module = experts
    return result


def _base(case: ExpertsCase, routed: Routed) -> Variant:
    return Variant("base", [routed], [()], 0)


def _peft_lora(case: ExpertsCase, routed: Routed) -> Variant:
    try:
        import peft
    except ImportError as error:
        raise UnavailableError(f"peft cannot be imported: {error}") from error
    names = [f"experts.{name}" for name in _PARAMETERS]
    config = peft.LoraConfig(
        r=case.rank, lora_alpha=int(SCALING * case.rank), target_modules=[], target_parameters=names
    )
    # A shell of its own: PEFT puts its wrappers into the module that holds the experts.
    shell = Routed(routed.experts, routed.index, routed.shares)
    model: Any = peft.get_peft_model(shell, config)
    trained = tuple(p for p in model.parameters() if p.requires_grad)
    for parameter in trained:
        parameter.data = random_tensor(
            *parameter.shape,
            dtype=case.torch_dtype,
            device=parameter.device,
            scale=0.1 * parameter.shape[1] ** -0.5,
        )
    return Variant("peft_lora", [model.base_model.model], [trained], case.rank)


def _gralora(
    case: ExpertsCase, routed: Routed, *, name: str = "gralora", dtype: torch.dtype | None = None
) -> Variant:
    from gralora.nn import GraLoRAExperts

    experts = GraLoRAExperts(routed.experts)
    trained = []
    for weights in experts.weights.values():
        weights.add_adapter(
            "default",
            r=case.rank,
            k=case.grid,
            alpha=SCALING * case.rank,
            adapter_dtype=dtype or case.torch_dtype,
        )
        weights.set_adapter("default")
        A, B = weights.gralora_A["default"], weights.gralora_B["default"]
        with torch.no_grad():
            # A fresh adapter's zero B would be unlike a trained one's.
            B.normal_(std=0.1 * case.rank**-0.5)
        trained += [A, B]
    shell = Routed(experts, routed.index, routed.shares)
    return Variant(name, [shell], [tuple(trained)], case.rank, is_gralora=True)


def _gralora_fp32(case: ExpertsCase, routed: Routed) -> Variant:
    if case.torch_dtype.itemsize != 2:
        raise UnavailableError(f"fp32 adapters are the usual ones beside {case.dtype}")
    return _gralora(case, routed, name="gralora_fp32", dtype=torch.float32)


def _errors(case: ExpertsCase, variant: Variant) -> dict[str, float]:
    """Relative errors of y, dx, and the worst of dA and dB, against one expert after the other."""
    shell = variant.modules[0]
    assert isinstance(shell, Routed)
    parameters = variant.parameters[0]
    x = random_tensor(
        1, ROWS, case.in_features, dtype=case.torch_dtype, device=shell.index.device
    ).requires_grad_()
    dy = torch.randn_like(x)
    y = shell(x)
    got = (y, *torch.autograd.grad(y, (x, *parameters), dy))
    exact = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    expected = _one_by_one(shell, exact[0][0], exact[1:])[None]
    want = (expected, *torch.autograd.grad(expected, exact, dy.double()))
    errors = [relative_error(one, other) for one, other in zip(got, want, strict=True)]
    return {"y": errors[0], "dx": errors[1], "dA": max(errors[2::2]), "dB": max(errors[3::2])}


def _one_by_one(shell: Routed, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Outputs ``[T, hidden]`` in fp64 of the experts, each with its adapter."""
    base: Any = shell.experts.base_layer
    y = torch.zeros_like(x)
    for expert in range(len(base.down_proj)):
        token, choice = (shell.index[: len(x)] == expert).nonzero(as_tuple=True)
        up_A, up_B, down_A, down_B = (factor[expert] for factor in factors)
        up, down = (getattr(base, name)[expert].double() for name in _PARAMETERS)
        inner = reference.linear(x[token], up, None, up_A, up_B, scaling=SCALING)
        gate, value = inner.chunk(2, 1)
        hidden = base.act_fn(gate) * value
        rows = reference.linear(hidden, down, None, down_A, down_B, scaling=SCALING)
        y = y.index_add(0, token, rows * shell.shares[token, choice, None].double())
    return y


_BUILDERS: dict[str, Callable[[ExpertsCase, Routed], Variant]] = {
    "base": _base,
    "peft_lora": _peft_lora,
    "gralora": _gralora,
    "gralora_fp32": _gralora_fp32,
}
