"""The variants of an adapted layer that the suites compare, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from gralora.bench.baselines import ADAPTER, library_gralora, peft_layers
from gralora.bench.case import PLAIN, SCALING, Case, Factors, Outputs, UnavailableError, Variant
from gralora.kernels import Path, recomputed_latents

# Of the variants that are named after them.
DROPOUT = 0.1
HYBRID_RANK = 16


def _base(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    return Variant("base", list(linears), [()] * len(linears), 0)


def _cublas(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    _require_plain(case)
    modules: list[Callable[[Tensor], Tensor]] = []
    parameters: list[tuple[Tensor, ...]] = []
    for linear in linears:
        A = factors.A.to(case.torch_dtype, copy=True).requires_grad_()
        B = factors.B.to(case.torch_dtype, copy=True).requires_grad_()
        modules.append(_library_call(linear.weight, A, B))
        parameters.append((A, B))
    return Variant("cublas", modules, parameters, case.rank, is_gralora=True)


def _library_call(weight: Tensor, A: Tensor, B: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: library_gralora(x, weight, A, B, SCALING)


def _peft_lora(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    config = _peft_config(
        "LoraConfig", r=case.rank, lora_alpha=SCALING * case.rank, lora_dropout=0.0
    )
    layers: list[Any] = peft_layers(config, linears, master_weights=False)
    parameters: list[tuple[nn.Parameter, ...]] = []
    for layer in layers:
        pair = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        with torch.no_grad():
            pair[1].normal_(std=0.1 * case.rank**-0.5)
        parameters.append(pair)
    _hold_in(case.torch_dtype, parameters)
    return Variant("peft_lora", layers, parameters, case.rank)


def _peft_gralora(
    case: Case,
    linears: Sequence[nn.Linear],
    factors: Factors,
    *,
    master_weights: bool = False,
    dropout: float = 0.0,
    hybrid_r: int = 0,
) -> Variant:
    rank = case.rank + hybrid_r
    config = _peft_config(
        "GraloraConfig",
        r=case.rank,
        gralora_k=case.grid,
        alpha=SCALING * rank,
        gralora_dropout=dropout,
        hybrid_r=hybrid_r,
    )
    layers: list[Any] = peft_layers(config, linears, master_weights=master_weights)
    parameters: list[tuple[nn.Parameter, ...]] = [
        (layer.gralora_A[ADAPTER], layer.gralora_B[ADAPTER]) for layer in layers
    ]
    if hybrid_r:
        parameters = [
            (
                *pair,
                layer.gralora_A_general[ADAPTER].weight,
                layer.gralora_B_general[ADAPTER].weight,
            )
            for pair, layer in zip(parameters, layers, strict=True)
        ]
    _hold_in(torch.float32 if master_weights else case.torch_dtype, parameters)
    _fill(parameters, factors)
    return Variant("peft_gralora", layers, parameters, rank, is_gralora=True, drops=dropout > 0)


def _peft_accelerated(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    built = _peft_gralora(case, linears, factors)
    from gralora.integrations.peft import accelerate

    layers: list[Any] = [
        accelerate(layer) for layer in built.modules if isinstance(layer, nn.Module)
    ]
    return Variant("peft_accelerated", layers, built.parameters, case.rank, is_gralora=True)


def _peft_gralora_fp32(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    _require_half(case)
    built = _peft_gralora(case, linears, factors, master_weights=True)
    return Variant("peft_gralora_fp32", built.modules, built.parameters, case.rank, is_gralora=True)


def _peft_gralora_autocast(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    _require_half(case)
    built = _peft_gralora(case, linears, factors, master_weights=True)
    modules = [_under_autocast(layer, case.torch_dtype) for layer in built.modules]
    return Variant("peft_gralora_autocast", modules, built.parameters, case.rank, is_gralora=True)


def _under_autocast(
    module: Callable[[Tensor], Outputs], dtype: torch.dtype
) -> Callable[[Tensor], Outputs]:
    def call(x: Tensor) -> Outputs:
        with torch.autocast(x.device.type, dtype=dtype):
            return module(x)

    return call


def _gralora(
    case: Case,
    linears: Sequence[nn.Linear],
    factors: Factors,
    *,
    adapter_dtype: torch.dtype | None = None,
    dropout: float = 0.0,
    hybrid_r: int = 0,
) -> Variant:
    try:
        from gralora.nn import GraLoRALinear, GraLoRAWrapper
    except ImportError as error:
        raise UnavailableError(f"gralora cannot be imported: {error}") from error
    adapt = GraLoRALinear.from_linear if case.base == PLAIN else GraLoRAWrapper
    rank = case.rank + hybrid_r
    layers = [
        adapt(
            linear,
            r=case.rank,
            k=case.grid,
            alpha=SCALING * rank,
            hybrid_r=hybrid_r,
            dropout=dropout,
            adapter_dtype=adapter_dtype or case.torch_dtype,
        )
        for linear in linears
    ]
    parameters: list[tuple[nn.Parameter, ...]] = [
        (layer.gralora_A[ADAPTER], layer.gralora_B[ADAPTER]) for layer in layers
    ]
    if hybrid_r:
        parameters = [
            (*pair, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
            for pair, layer in zip(parameters, layers, strict=True)
        ]
    _fill(parameters, factors)
    return Variant("gralora", list(layers), parameters, rank, is_gralora=True, drops=dropout > 0)


def _gralora_functional(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    _require_plain(case)
    built = _gralora(case, linears, factors)
    modules = [
        _functional_call(linear.weight, *pair)
        for linear, pair in zip(linears, built.parameters, strict=True)
    ]
    return Variant("gralora_functional", modules, built.parameters, case.rank, is_gralora=True)


def _functional_call(weight: Tensor, A: Tensor, B: Tensor) -> Callable[[Tensor], Tensor]:
    from gralora.functional import gralora_linear

    return lambda x: gralora_linear(x, weight, None, A, B, scaling=SCALING)


def _gralora_recomputed(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    built = _gralora(case, linears, factors)
    modules = [_without_latents(module) for module in built.modules]
    return Variant("gralora_recomputed", modules, built.parameters, case.rank, is_gralora=True)


def _without_latents(module: Callable[[Tensor], Outputs]) -> Callable[[Tensor], Outputs]:
    def call(x: Tensor) -> Outputs:
        with recomputed_latents():
            return module(x)

    return call


def _gralora_fp32(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    _require_half(case)
    built = _gralora(case, linears, factors, adapter_dtype=torch.float32)
    return Variant("gralora_fp32", built.modules, built.parameters, case.rank, is_gralora=True)


def _gralora_on_path(
    path: Path, case: Case, linears: Sequence[nn.Linear], factors: Factors
) -> Variant:
    if linears[0].weight.device.type != "cuda":
        raise UnavailableError("a CPU has library calls alone")
    return replace(_gralora(case, linears, factors), name=f"gralora_{path}", path=path)


def _fill(parameters: Sequence[tuple[Tensor, ...]], factors: Factors) -> None:
    with torch.no_grad():
        for A, B, *plain in parameters:
            A.copy_(factors.A)
            B.copy_(factors.B)
            if plain:
                plain[1].normal_(std=0.1 * plain[1].shape[1] ** -0.5)


def _hold_in(dtype: torch.dtype, parameters: Sequence[tuple[nn.Parameter, ...]]) -> None:
    """Give adapters the dtype that PEFT gives them beside a plain layer alone."""
    for pair in parameters:
        for parameter in pair:
            parameter.data = parameter.data.to(dtype)


def _peft_config(name: str, **values: object) -> Any:
    try:
        import peft
    except ImportError as error:
        raise UnavailableError(f"peft cannot be imported: {error}") from error
    if not hasattr(peft, name):
        raise UnavailableError(f"peft {peft.__version__} has no {name}")
    return getattr(peft, name)(**values)


def _require_half(case: Case) -> None:
    if case.torch_dtype.itemsize != 2:
        raise UnavailableError(f"fp32 adapters are the usual ones beside {case.dtype}")


def _require_plain(case: Case) -> None:
    if case.base != PLAIN:
        raise UnavailableError("takes a plain weight, and the layer's is quantised")


def _peft_gralora_compiled(case: Case, linears: Sequence[nn.Linear], factors: Factors) -> Variant:
    if len(linears) > 1:
        # Every layer of a ring is compiled anew, and past a limit torch runs them uncompiled.
        raise UnavailableError("torch.compile is compared with the weights of one layer alone")
    built = _peft_gralora(case, linears, factors)
    modules = [torch.compile(layer, dynamic=False) for layer in built.modules]
    return Variant("peft_gralora_compiled", modules, built.parameters, case.rank, is_gralora=True)


def _renamed(name: str, build: Callable[..., Variant], **options: Any) -> Builder:
    """A variant with other options, under its own name."""
    return lambda *arguments: replace(build(*arguments, **options), name=name)


Builder = Callable[[Case, Sequence[nn.Linear], Factors], Variant]

# In the order of the tables.
BUILDERS: dict[str, Builder] = {
    "base": _base,
    "cublas": _cublas,
    "peft_lora": _peft_lora,
    "peft_gralora": _peft_gralora,
    "peft_gralora_fp32": _peft_gralora_fp32,
    "peft_gralora_autocast": _peft_gralora_autocast,
    "peft_gralora_compiled": _peft_gralora_compiled,
    "peft_accelerated": _peft_accelerated,
    "gralora": _gralora,
    "gralora_fp32": _gralora_fp32,
    "gralora_functional": _gralora_functional,
    "gralora_recomputed": _gralora_recomputed,
    "peft_gralora_dropout": _renamed("peft_gralora_dropout", _peft_gralora, dropout=DROPOUT),
    "gralora_dropout": _renamed("gralora_dropout", _gralora, dropout=DROPOUT),
    "peft_gralora_hybrid": _renamed("peft_gralora_hybrid", _peft_gralora, hybrid_r=HYBRID_RANK),
    "gralora_hybrid": _renamed("gralora_hybrid", _gralora, hybrid_r=HYBRID_RANK),
    **{f"gralora_{path}": partial(_gralora_on_path, path) for path in get_args(Path)},
}

# The layer with one path forced, which a GPU or a layer may not have.
ON_PATH = frozenset(f"gralora_{path}" for path in get_args(Path))

# They run only where their names are given: the first is slow to start, the others do the same work
# in another way, or more of it.
ON_REQUEST = frozenset(
    {
        "peft_gralora_compiled",
        "gralora_functional",
        "gralora_recomputed",
        *(
            f"{layer}_{what}"
            for layer in ("peft_gralora", "gralora")
            for what in ("dropout", "hybrid")
        ),
        *ON_PATH,
    }
)
