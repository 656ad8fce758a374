"""merge_and_unload(): adapters into the weights they adapt, and the plain model back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from gralora.injection import checkpointing, fused
from gralora.injection.record import detach_state, unwrap
from gralora.injection.saved_module import SavedModule
from gralora.nn import GraLoRALinear
from gralora.nn.sharing import memory_range

WHO = "merge_and_unload"

Places = dict[nn.Module, list[str]]


def merge_and_unload(
    model: nn.Module,
    progressbar: bool = False,
    safe_merge: bool = False,
    adapter_names: str | Sequence[str] | None = None,
) -> nn.Module:
    """Merge adapters into the weights of a model and take everything of gralora out of it.

    Every :class:`gralora.nn.GraLoRALinear` becomes an ``nn.Linear`` with the very weight that it
    had, in place and without a copy kept; saved modules become the trained copy of the adapter
    that is merged, and the original where it has none. Other adapters are dropped. Trained biases
    are in the model already. Saved, the model loads without gralora.

    Args:
        model: bare, data-parallel or compiled; layers may have been put in by hand.
        progressbar: show the layers as they are merged.
        safe_merge: check first that no weight of any layer would become Inf or NaN. It merges
            twice, and takes one more weight's memory at a time.
        adapter_names: which; None means each layer's active ones.

    Returns:
        The model without wrappers: `model` itself where it was bare.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an unknown name; two adapters that save one module; with `safe_merge`, a result
            that is not finite.
        RuntimeError: a weight that another module shares and would change with it, that is on the
            meta device or no ordinary tensor, or an adapter that is merged but not asked for.

    In each case nothing has changed.

    """
    base = unwrap(model)
    layers, copies = _find(base, GraLoRALinear), _find(base, SavedModule)
    names = _check_names(layers, copies, adapter_names)
    chosen = {layer: _adapters_of(cast(GraLoRALinear, layer), names) for layer in layers}
    replacements = {saved: _copy_of(cast(SavedModule, saved), names, copies) for saved in copies}
    _check_merged(layers, chosen)
    _check_shared(base, layers, chosen)
    for layer, adapters in chosen.items():
        if adapters:
            cast(GraLoRALinear, layer).check_merge(adapters, safe_merge=safe_merge)

    for layer in track(
        list(layers), "merging", console=Console(stderr=True), disable=not progressbar
    ):
        adapted = cast(GraLoRALinear, layer)
        if chosen[layer]:
            adapted.merge(adapter_names=chosen[layer], keep=False)
        replacements[layer] = _plain(adapted)
    checkpointing.remove(base)
    for module, places in (layers | copies).items():
        for place in places:
            if not place:
                return replacements[module]
            parent, _, attribute = place.rpartition(".")
            setattr(base.get_submodule(parent), attribute, replacements[module])
    fused.enable(base)
    detach_state(base)
    return base


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
        known |= dict.fromkeys(cast(GraLoRALinear, layer).adapters)
    for saved in copies:
        known |= dict.fromkeys(cast(SavedModule, saved).modules_to_save)
    for name in names:
        if name not in known:
            present = ", ".join(map(repr, known)) or "none"
            raise ValueError(f"{WHO}: no adapter is named {name!r} (present: {present})")
    return tuple(dict.fromkeys(names))


def _adapters_of(layer: GraLoRALinear, names: tuple[str, ...] | None) -> list[str]:
    if names is None:
        return layer.active_adapters
    return [name for name in names if name in layer.adapters]


def _copy_of(saved: SavedModule, names: tuple[str, ...] | None, copies: Places) -> nn.Module:
    if names is None:
        return saved.active_module
    present = [name for name in names if name in saved.modules_to_save]
    if len(present) > 1:
        raise ValueError(
            f"{WHO}: only one of the adapters that save a module may be merged, got {present}, "
            f"which all save {copies[saved][0]}"
        )
    return saved.modules_to_save[present[0]] if present else saved.original_module


def _check_merged(layers: Places, chosen: dict[nn.Module, list[str]]) -> None:
    for layer, names in layers.items():
        merged = cast(GraLoRALinear, layer).merged_adapters
        others = [name for name in merged if name not in chosen[layer]]
        if others:
            raise RuntimeError(
                f"{WHO}: only adapters that are asked for may be merged already, got {others} in "
                f"{names[0]} (unmerge() first, or name them in adapter_names)"
            )


def _check_shared(model: nn.Module, layers: Places, chosen: dict[nn.Module, list[str]]) -> None:
    """Refuse a weight that overlaps with any other tensor of the model."""
    ranges: list[tuple[torch.device, int, int, str, nn.Module | None]] = []
    for prefix, module in model.named_modules():
        tensors = [*module._parameters.items(), *module._buffers.items()]
        for key, tensor in tensors:
            if tensor is None or tensor.is_meta or not _has_memory(tensor):
                continue
            start, end = memory_range(tensor)
            owner = module if module in layers and key == "weight" else None
            name = f"{prefix}.{key}" if prefix else key
            ranges.append((tensor.device, start, end, name, owner))
    ranges.sort(key=lambda item: (str(item[0]), item[1]))
    widest: tuple[torch.device, int, int, str, nn.Module | None] | None = None
    for current in ranges:
        if widest and widest[0] == current[0] and current[1] < widest[2]:
            for one, other in ((widest, current), (current, widest)):
                if one[4] is not None and chosen[one[4]]:
                    raise RuntimeError(
                        f"{WHO}: a weight that is merged must be its layer's alone, got {one[3]} "
                        f"and {other[3]} in the same memory (give each a tensor of its own)"
                    )
        if widest is None or widest[0] != current[0] or current[2] > widest[2]:
            widest = current


def _has_memory(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.numel() > 0


def _plain(layer: GraLoRALinear) -> nn.Linear:
    """The frozen layer as torch has it, with the very same tensors."""
    linear = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
    )
    linear.weight = layer.weight
    if layer.bias is not None:
        linear.bias = layer.bias
    return linear.train(layer.training)
