"""merge_and_unload(): adapters into the weights they adapt, and the plain model back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torch import nn

from gralora.injection import checkpointing, fused
from gralora.injection.overlaps import check_unshared
from gralora.injection.record import detach_state, unwrap
from gralora.injection.saved_module import SavedModule
from gralora.nn import ExpertWeights, GraLoRAExperts, MergeableLayer

WHO = "merge_and_unload"

Places = dict[nn.Module, list[str]]


def merge_and_unload(
    model: nn.Module,
    progressbar: bool = False,
    safe_merge: bool = False,
    adapter_names: str | Sequence[str] | None = None,
) -> nn.Module:
    """Merge adapters into the weights of a model and take everything of gralora out of it.

    Every adapted layer becomes the plain one it was, with the very weight that it had, in place and
    without a copy kept; a quantised weight is dequantised, added to, and quantised again with the
    same settings. A weight gets back what a PiSSA adapter took out of it that is not merged. Saved
    modules become the trained copy of the adapter that is merged, and the original where it has
    none. Other adapters are dropped. Trained biases are in the model already. Saved, the model
    loads without gralora.

    Args:
        model: bare, data-parallel or compiled; layers may have been put in by hand.
        progressbar: show the layers as they are merged.
        safe_merge: check first that no weight of any layer would become Inf or NaN. It merges
            twice, and takes one more weight's memory at a time.
        adapter_names: which; None means each layer's active ones, also while adapters are off.

    Returns:
        The model without wrappers: `model` itself where it was bare.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an unknown name; two adapters that save one module; with `safe_merge`, a result
            that is not finite.
        RuntimeError: a weight that another module shares and would change with it, that is on the
            meta device or cannot be merged into, or an adapter that is merged but not asked for.

    In each case nothing has changed.

    Warns:
        UserWarning: quantised weights were quantised again, and how far off that is.

    """
    base = unwrap(model)
    layers, copies = _find(base, MergeableLayer), _find(base, SavedModule)
    experts = _find(base, GraLoRAExperts)
    names = _check_names(layers, copies, adapter_names)
    chosen = {layer: _adapters_of(cast(MergeableLayer, layer), names) for layer in layers}
    replacements = {saved: _copy_of(cast(SavedModule, saved), names, copies) for saved in copies}
    _check_whole(layers | copies | experts)
    _check_merged(layers, chosen)
    check_unshared(base, _changed(chosen), WHO)
    pending = _check_layers(layers, chosen, safe_merge)
    errors: dict[str, float] = {}
    for layer in _shown(list(layers), progressbar):
        adapted = cast(MergeableLayer, layer)
        error = adapted.merge_checked(pending[layer])
        if error is not None:
            errors[layers[layer][0]] = error
        adapted.put_back()
        # Adapters of experts go together with what holds them.
        if not isinstance(layer, ExpertWeights):
            replacements[layer] = adapted.plain()
    replacements |= {wrapped: cast(GraLoRAExperts, wrapped).base_layer for wrapped in experts}
    _warn(errors)
    checkpointing.remove(base)
    for module, places in (layers | copies | experts).items():
        for place in places if module in replacements else ():
            if not place:
                return replacements[module]
            parent, _, attribute = place.rpartition(".")
            setattr(base.get_submodule(parent), attribute, replacements[module])
    fused.enable(base)
    for module in base.modules():
        detach_state(module)
    return base


def _changed(chosen: Mapping[nn.Module, Sequence[str]]) -> set[nn.Module]:
    """Layers whose weights are written to, by merging or by giving back what they lack."""
    return {
        layer
        for layer, names in chosen.items()
        if names or cast(MergeableLayer, layer).lacks_part(names)
    }


def _shown(layers: list[nn.Module], progressbar: bool) -> Iterable[nn.Module]:
    """The layers one by one, with a bar on the terminal where one is asked for."""
    if not progressbar:
        return layers
    # Here, because importing gralora must not cost what drawing bars does.
    from rich.console import Console
    from rich.progress import track

    return track(layers, "merging", console=Console(stderr=True))


def _find(model: nn.Module, kind: type[nn.Module]) -> Places:
    """Modules of a kind and every name under which each is reachable."""
    places: Places = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kind):
            places.setdefault(module, []).append(name)
    return places


def _check_names(
    layers: Iterable[nn.Module], copies: Iterable[nn.Module], wanted: object
) -> tuple[str, ...] | None:
    if wanted is None:
        return None
    names = (wanted,) if isinstance(wanted, str) else wanted
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{WHO}: adapter_names must be a str, a sequence of str or None, got {wanted!r}"
        )
    known: dict[str, None] = {}
    for layer in layers:
        known |= dict.fromkeys(cast(MergeableLayer, layer).adapters)
    for saved in copies:
        known |= dict.fromkeys(cast(SavedModule, saved).modules_to_save)
    for name in names:
        if name not in known:
            present = ", ".join(map(repr, known)) or "none"
            raise ValueError(f"{WHO}: no adapter is named {name!r} (present: {present})")
    return tuple(dict.fromkeys(names))


def _adapters_of(layer: MergeableLayer, names: tuple[str, ...] | None) -> list[str]:
    if names is None:
        return layer.active_adapters
    return [name for name in names if name in layer.adapters]


def _copy_of(saved: SavedModule, names: tuple[str, ...] | None, copies: Places) -> nn.Module:
    if names is None:
        names = () if saved.active_adapter is None else (saved.active_adapter,)
    present = [name for name in names if name in saved.modules_to_save]
    if len(present) > 1:
        raise ValueError(
            f"{WHO}: only one of the adapters that save a module may be merged, got {present}, "
            f"which all save {copies[saved][0]}"
        )
    return saved.modules_to_save[present[0]] if present else saved.original_module


def _check_whole(modules: Places) -> None:
    """Refuse parameters of which this process holds a part alone."""
    for module, names in modules.items():
        for key, parameter in module.named_parameters():
            # DTensors have placements; DeepSpeed and FSDP 1 leave nothing of the shape.
            part = "a DTensor" if hasattr(parameter, "placements") else list(parameter.shape)
            if part == "a DTensor" or (
                parameter.numel() == 0 and isinstance(module, (MergeableLayer, GraLoRAExperts))
            ):
                raise RuntimeError(
                    f"{WHO}: model must not be sharded, got {names[0]}.{key} as {part} (save the "
                    "adapter, load it into a whole model and merge there)"
                )


def _check_layers(
    layers: Places, chosen: dict[nn.Module, list[str]], safe_merge: bool
) -> dict[nn.Module, tuple[str, ...]]:
    """What each layer still has to merge, once every layer is known to be able to."""
    pending = {}
    for layer, adapters in chosen.items():
        try:
            pending[layer] = cast(MergeableLayer, layer).check_merge(
                adapters, safe_merge=safe_merge
            )
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{WHO}: {layers[layer][0]}: {error}") from None
    return pending


def _check_merged(layers: Places, chosen: dict[nn.Module, list[str]]) -> None:
    for layer, names in layers.items():
        merged = cast(MergeableLayer, layer).merged_adapters
        others = [name for name in merged if name not in chosen[layer]]
        if others:
            raise RuntimeError(
                f"{WHO}: only adapters that are asked for may be merged already, got {others} in "
                f"{names[0]} (unmerge() first, or name them in adapter_names)"
            )


def _warn(errors: Mapping[str, float]) -> None:
    """Say how far the quantised weights are from the exact merged ones."""
    if not errors:
        return
    worst = max(errors, key=errors.__getitem__)
    warnings.warn(
        f"{WHO}: {len(errors)} quantised weights were quantised again, which puts them off the "
        f"exact merged ones by up to {errors[worst]:.2g} of their Frobenius norm ({worst}); "
        "merging into the unquantised checkpoint avoids that",
        UserWarning,
        stacklevel=3,
    )
