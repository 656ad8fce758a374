"""Merging PEFT's GraLoRA into a quantised base, which PEFT's own layer cannot.

The weight is dequantised, added to in float32 and quantised again with the same settings, by the
codecs of :mod:`gralora.nn.quantisation`. The original is kept, so that unmerging is exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from gralora.nn.quantisation import Codec, codec_of

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object

# Errors by layer while a whole model is merged, which warns once; None while a layer is by itself.
_errors: ContextVar[dict[str, float] | None] = ContextVar("errors of quantising", default=None)


class RequantisingMerge(_Base):
    """Mixed in before PEFT's GraLoRA layer; its only state is the base of a merged layer."""

    # In a tuple, since a parameter that is an attribute would be one of this module's own.
    kept_base: tuple[Any] | None = None

    def has_quantised_base(self) -> bool:
        """Whether merging is this class's, not PEFT's."""
        layer: Any = self
        return codec_of(layer.get_base_layer()) is not None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight, as PEFT's layer does, also to a quantised one.

        Args:
            safe_merge: leave the weight alone where the result would hold an Inf or NaN.
            adapter_names: which; None means the active ones.

        Raises:
            RuntimeError: a quantised weight of a kind that cannot be merged into.
            ValueError: with `safe_merge`, a result that is not finite.

        Warns:
            UserWarning: the weight was quantised again, and how far off that is.

        """
        layer: Any = self
        codec = codec_of(layer.get_base_layer())
        if codec is None:
            layer_of_peft: Any = super()
            layer_of_peft.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            return
        wanted = check_adapters_to_merge(layer, adapter_names)
        check_quantised_merge(layer, wanted, safe_merge, "merge")
        names = _still_to_merge(layer, wanted)
        if names:
            _report(_name(layer), _merge(layer, codec, names))

    def unmerge(self) -> None:
        """Take all adapters out of the base weight; a quantised one is restored bit for bit."""
        layer: Any = self
        if self.kept_base is None:
            layer_of_peft: Any = super()
            layer_of_peft.unmerge()
            return
        base = layer.get_base_layer()
        codec = codec_of(base)
        assert codec is not None
        codec.install(base, codec.moved(self.kept_base[0], base.weight.device))
        del self.kept_base
        layer.merged_adapters.clear()


def check_quantised_merge(
    layer: Any, adapter_names: Sequence[str] | None, safe_merge: bool, who: str
) -> None:
    """Raise what keeps a layer's quantised base from being merged into, and change nothing.

    Args:
        layer: PEFT's GraLoRA layer; nothing is refused where its base is not quantised.
        adapter_names: which adapters; None means the active ones.
        safe_merge: whether the result must be finite.
        who: the caller's name, for the message.

    Raises:
        RuntimeError, ValueError: as :meth:`RequantisingMerge.merge`.

    """
    base = layer.get_base_layer()
    codec = codec_of(base)
    names = () if codec is None else _still_to_merge(layer, adapter_names)
    if codec is None or not names:
        return
    reason = codec.why_not(base)
    if reason is not None:
        raise RuntimeError(f"{who}: {_name(layer)}: {reason}")
    if safe_merge:
        with torch.no_grad():
            exact = _exact(layer, codec, names)
            again = codec.dequantise(codec.quantise(exact, base), base)
        if not (torch.isfinite(exact).all() and torch.isfinite(again).all()):
            raise ValueError(
                f"{who}: {_name(layer)}: the merged weight must be finite, got Inf or NaN from "
                f"{list(names)} (nothing was changed: safe_merge=True)"
            )


@contextmanager
def one_warning(who: str) -> Iterator[None]:
    """Gather what quantising again costs each layer, and warn of the largest error at the end."""
    errors: dict[str, float] = {}
    token = _errors.set(errors)
    try:
        yield
    finally:
        _errors.reset(token)
    if errors:
        _warn(who, errors)


def _report(layer: str, error: float) -> None:
    errors = _errors.get()
    if errors is None:
        _warn("merge", {layer: error})
    else:
        errors[layer] = error


def _warn(who: str, errors: dict[str, float]) -> None:
    worst = max(errors, key=errors.__getitem__)
    weights = "weight was" if len(errors) == 1 else "weights were"
    warnings.warn(
        f"{who}: {len(errors)} quantised {weights} quantised again, off the exact merged one by "
        f"up to {errors[worst]:.2g} of its Frobenius norm ({worst}); merging into the unquantised "
        "checkpoint avoids that",
        UserWarning,
        stacklevel=4,
    )


@torch.no_grad()
def _merge(layer: Any, codec: Codec, names: tuple[str, ...]) -> float:
    """Install the merged weight, and return its error relative to the exact one."""
    base = layer.get_base_layer()
    exact = _exact(layer, codec, names)
    state = codec.quantise(exact, base)
    difference = codec.dequantise(state, base).sub_(exact)
    error = torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(exact)
    if layer.kept_base is None:
        layer.kept_base = (codec.moved(codec.read(base), torch.device("cpu")),)
    codec.install(base, state)
    layer.merged_adapters.extend(names)
    return float(error)


def _exact(layer: Any, codec: Codec, names: tuple[str, ...]) -> Tensor:
    """The base with the adapters that are merged and those named, ``[M, N]`` in float32."""
    base = layer.get_base_layer()
    # From the original where it is kept, so that nothing is quantised twice.
    state = codec.read(base) if layer.kept_base is None else layer.kept_base[0]
    weight = codec.dequantise(codec.moved(state, base.weight.device), base)
    for name in (*layer.merged_adapters, *names):
        if name in layer.gralora_A:
            weight += layer.get_delta_weight(name).to(weight)
    return weight


def _still_to_merge(layer: Any, adapter_names: Sequence[str] | None) -> tuple[str, ...]:
    wanted = layer.active_adapters if adapter_names is None else adapter_names
    return tuple(
        name
        for name in dict.fromkeys(wanted)
        if name in layer.gralora_A and name not in layer.merged_adapters
    )


def _name(layer: Any) -> str:
    """Name that PEFT gave the layer: that of its base in the model."""
    return str(layer.module_name)
