"""Which adapters of a whole model act and train: the counterparts of the layer's methods."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from torch import nn

from gralora.injection.record import InjectionState, attach_state, injection_state, unwrap
from gralora.injection.saved_module import SavedModule
from gralora.nn import MergeableLayer


def set_adapter(model: nn.Module, names: str | Sequence[str]) -> None:
    """Make exactly these adapters of a model active and trainable, and all others neither.

    Other parameters keep their ``requires_grad``. Merged adapters are unmerged first, with a
    warning, since they would go on acting.

    Args:
        model: bare, data-parallel or compiled.
        names: one name or several; layers without such an adapter act as the base model's.

    Raises:
        TypeError: `names` is neither a str nor a sequence of str.
        ValueError: a name that is unknown or given twice, or two adapters that save one module.
        RuntimeError: adapters are merged with ``keep=False``.

    """
    base = unwrap(model)
    wanted = _check_names(base, names)
    _check_one_copy(base, wanted)
    _unmerge(base, "set_adapter", warning=True)
    state = injection_state(base)
    state.active = wanted
    attach_state(base, state)
    for layer in _layers(base):
        layer.set_adapter([name for name in wanted if name in layer.adapters])
    for saved in _saved_modules(base):
        saved.set_adapter(wanted)
    _train_biases(base, state)


def enable_adapters(model: nn.Module, enabled: bool) -> None:
    """Turn all adapters of a model on, or off: it is then the base model and nothing trains.

    Trained biases stay as they are, as in PEFT. Turning off unmerges first.

    Args:
        model: bare, data-parallel or compiled.
        enabled: on or off.

    Raises:
        RuntimeError: off is asked for while merged with ``keep=False``.

    """
    base = unwrap(model)
    state = injection_state(base)
    if not enabled:
        if any(record.biases for record in state.records.values()):
            warnings.warn(
                "enable_adapters: trained biases stay in the model while adapters are off, so that "
                "its outputs are not the base model's",
                UserWarning,
                stacklevel=2,
            )
        _unmerge(base, "enable_adapters", warning=False)
    state.enabled = bool(enabled)
    attach_state(base, state)
    for layer in _layers(base):
        layer.enable_adapters(state.enabled)
    for saved in _saved_modules(base):
        saved.enable_adapters(state.enabled)
    _train_biases(base, state)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove an adapter from a model; where it was active, no other takes its place.

    Its trained biases stay in the model, frozen. So do the layers that it was attached to, without
    it; merge_and_unload() gives the plain model back. Weights get back what a PiSSA adapter took
    out of them, rounded to their dtype.

    Args:
        model: bare, data-parallel or compiled.
        name: of the adapter.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the adapter is merged, or a sharded weight lacks what it took out.

    """
    base = unwrap(model)
    _check_known(base, name, "delete_adapter")
    for module_name, module in base.named_modules():
        if isinstance(module, MergeableLayer) and name in module.merged_adapters:
            raise RuntimeError(
                f"delete_adapter: the adapter must not be merged, got {name!r}, merged in "
                f"{module_name} (unmerge() first)"
            )
        if isinstance(module, MergeableLayer):
            module.check_delete(name)
    state = injection_state(base)
    state.active = tuple(active for active in state.active if active != name)
    _train_biases(base, state)
    drop_adapter(base, name)
    state.records.pop(name, None)


def drop_adapter(model: nn.Module, name: str) -> None:
    """Take an adapter out of all layers and saved modules that have it, whatever is recorded."""
    for layer in _layers(model):
        if name in layer.adapters:
            layer.delete_adapter(name)
    for saved in _saved_modules(model):
        if name in saved.modules_to_save:
            saved.delete_adapter(name)


def _layers(model: nn.Module) -> Iterator[MergeableLayer]:
    return (module for module in model.modules() if isinstance(module, MergeableLayer))


def _saved_modules(model: nn.Module) -> Iterator[SavedModule]:
    return (module for module in model.modules() if isinstance(module, SavedModule))


def _train_biases(model: nn.Module, state: InjectionState) -> None:
    for name, record in state.records.items():
        for bias in record.biases:
            trains = state.enabled and name in state.active
            model.get_parameter(bias).requires_grad_(trains)


def _known_names(model: nn.Module) -> list[str]:
    known = dict.fromkeys(injection_state(model).records)
    for layer in _layers(model):
        known |= dict.fromkeys(layer.adapters)
    return list(known)


def _check_known(model: nn.Module, name: object, who: str) -> None:
    known = _known_names(model)
    if name not in known:
        present = ", ".join(map(repr, known)) or "none"
        raise ValueError(f"{who}: no adapter is named {name!r} (present: {present})")


def _check_names(model: nn.Module, names: object) -> tuple[str, ...]:
    wanted = (names,) if isinstance(names, str) else names
    if not isinstance(wanted, Sequence) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(
            f"set_adapter: adapter names must be a str or a sequence of str, got {names!r}"
        )
    for name in wanted:
        _check_known(model, name, "set_adapter")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"set_adapter: a name must appear once, got {list(wanted)}")
    return tuple(wanted)


def _check_one_copy(model: nn.Module, wanted: tuple[str, ...]) -> None:
    for module_name, module in model.named_modules():
        if isinstance(module, SavedModule):
            copies = [name for name in wanted if name in module.modules_to_save]
            if len(copies) > 1:
                raise ValueError(
                    "set_adapter: only one of the adapters that save a module may be active, got "
                    f"{copies}, which all save {module_name}"
                )


def _unmerge(model: nn.Module, who: str, *, warning: bool) -> None:
    merged = [layer for layer in _layers(model) if layer.merged]
    lost = [layer for layer in merged if not layer.can_unmerge]
    if lost:
        raise RuntimeError(
            f"{who}: no adapter may be merged with keep=False, got {lost[0].merged_adapters} "
            "(the base weight was not kept; load the model anew)"
        )
    if merged and warning:
        warnings.warn(f"{who}: merged adapters are unmerged first", UserWarning, stacklevel=3)
    for layer in merged:
        layer.unmerge()
