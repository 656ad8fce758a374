"""The numbers of one merged tensor: sums in float32 or wider, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from gralora.adapters.stored import StoredExperts, StoredLayer
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.tensor_plan import Addition, TensorPlan
from gralora.injection.listing import some


@torch.no_grad()
def compute(plan: TensorPlan, base: Tensor | None, device: torch.device) -> Tensor:
    """The tensor to be written, on the CPU and contiguous.

    Args:
        plan: what becomes of it.
        base: its value in the base model, on the CPU; it may be overwritten.
        device: where weights are merged.

    Raises:
        ValueError: the result has an Inf or NaN, which the base has not.

    """
    if plan.additions:
        assert base is not None
        result = _merge(plan, base, device)
    elif plan.replacements:
        result = _replace(plan, base)
    else:
        assert base is not None
        result = base.to(plan.dtype)
    if not is_finite(result) and (base is None or is_finite(base)):
        raise ValueError(
            f"{WHO}: merged tensors must be finite, got an Inf or NaN in {some([plan.name])} as "
            f"{str(plan.dtype).removeprefix('torch.')} (an adapter with such numbers or too large "
            "a weight, or a dtype with too small a range)"
        )
    return result.contiguous()


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is an Inf or NaN."""
    if not tensor.is_floating_point():
        return True
    # A sum shows both, and takes no second tensor as isfinite does. Large numbers may overflow it.
    total = tensor.sum(dtype=_wide(tensor.dtype))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def _merge(plan: TensorPlan, base: Tensor, device: torch.device) -> Tensor:
    """``W + sum of weight * ΔW``; where one adapter is added and W's dtype stays, in W itself."""
    direct = len(plan.additions) == 1 and base.dtype == plan.dtype
    # A copy in any case: whether the result is finite is judged by the base as it was.
    work = base.to(device, base.dtype if direct else _wide(base.dtype, plan.dtype), copy=True)
    for addition in plan.additions:
        _add(work.mT if addition.transposed else work, addition)
    return work.to(plan.dtype).cpu()


def _add(weight: Tensor, addition: Addition) -> None:
    if isinstance(addition.layer, StoredExperts):
        for matrix, layer in zip(weight, addition.layer.layers, strict=True):
            _add_layer(matrix, layer, addition.weight)
    else:
        _add_layer(weight, addition.layer, addition.weight)


def _add_layer(weight: Tensor, layer: StoredLayer, factor: float) -> None:
    A, B, lora_A, lora_B = (
        None if stored is None else stored.to(weight.device) for stored in layer.factors
    )
    scaling = layer.spec.scaling * factor
    torch.ops.gralora.merge_(weight, A, B, lora_A, lora_B, scaling=scaling)


def _replace(plan: TensorPlan, base: Tensor | None) -> Tensor:
    """The trained value, or the base and weighted differences to it."""
    first = plan.replacements[0]
    if len(plan.replacements) == 1 and first.weight == 1:
        return first.value.to(plan.dtype)
    assert base is not None
    dtype = _wide(base.dtype, plan.dtype)
    start = base.to(dtype)
    result = start.clone()
    for change in plan.replacements:
        result += change.weight * (change.value.to(dtype) - start)
    return result.to(plan.dtype)


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32
