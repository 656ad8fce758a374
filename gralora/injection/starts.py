"""Whether the layers of a model can give PiSSA adapters what those start with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from gralora.injection.overlaps import check_unshared
from gralora.nn import AdapterSpec, MergeableLayer
from gralora.nn.kinds import conv1d_class, has_packed_weight, is_plain_conv1d, is_plain_linear
from gralora.nn.pissa import check_finite, check_pissa
from gralora.nn.starts import is_pissa


def check_starts(model: nn.Module, specs: Mapping[str, AdapterSpec], who: str) -> None:
    """Raise unless every target can be adapted as its `init_weights` says.

    Args:
        model: bare, or with other adapters.
        specs: of the adapters to come, by the targets' names.
        who: opens the error messages.

    Raises:
        TypeError: a target without a matrix of its own, such as a quantised one.
        ValueError: a rank above that of a target's blocks, a scale that is not positive, or a
            weight that is not finite.
        RuntimeError: a weight that has no values, or that something else in memory shares.

    """
    changed = set()
    for name, spec in specs.items():
        if is_pissa(spec.init_weights):
            module = model.get_submodule(name)
            _check_start(module, spec, f"{who}: {name}")
            changed.add(module)
    if changed:
        check_unshared(model, changed, who, "a weight that gives a part to a PiSSA adapter")


def _check_start(module: nn.Module, spec: AdapterSpec, who: str) -> None:
    if isinstance(module, MergeableLayer):
        module.check_start(spec, who=who)
        return
    if has_packed_weight(module) or not (is_plain_linear(module) or is_plain_conv1d(module)):
        raise TypeError(
            f"{who}: init_weights={spec.init_weights!r} takes a part out of the weight, which must "
            "be the floating matrix of an nn.Linear or a Conv1D, got a "
            f"{type(module).__module__}.{type(module).__qualname__} (accepted here: "
            '"kaiming", "gaussian", "orthogonal"; a PiSSA adapter that was trained on the '
            "unquantised model can be loaded)"
        )
    weight = cast(Tensor, module.weight)
    check_pissa(spec, weight.t() if conv1d_class(module) else weight, who=who)
    check_finite(spec, weight, who=who)
