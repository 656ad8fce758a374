"""The modules of a model under all their names, without the insides of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from gralora.injection.saved_module import SavedModule
from gralora.nn import GraLoRAExperts, MergeableLayer
from gralora.nn.choice import is_linear


@dataclass(frozen=True)
class Survey:
    """What a configuration may select from.

    Attributes:
        modules: every module by every name it is reachable under, in the model's order.
        names: those names by the module's ``id``; the first one stands for the module.

    """

    modules: dict[str, nn.Module]
    names: dict[int, tuple[str, ...]]

    @cached_property
    def _order(self) -> list[str]:
        return list(self.modules)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.modules)}

    def first_name(self, name: str) -> str:
        """Name that stands for the module called `name`."""
        return self.names[id(self.modules[name])][0]

    def linear_names(self) -> Iterator[str]:
        """Names of the linear layers, adapted ones included."""
        for name, module in self.modules.items():
            if is_linear(module):
                yield name

    def inside(self, name: str) -> Iterator[tuple[str, nn.Module]]:
        """The modules inside the one called `name`, with their names."""
        # The model's order has them next to each other.
        for place in range(self._places[name] + 1, len(self._order)):
            inner = self._order[place]
            if not inner.startswith(f"{name}."):
                return
            yield inner, self.modules[inner]


def survey(model: nn.Module) -> Survey:
    """Walk a model; adapters and saved modules are leaves, also those of wrapped experts."""
    modules: dict[str, nn.Module] = {}
    names: dict[int, list[str]] = {}
    for name, module in _walk(model, "", ()):
        modules[name] = module
        names.setdefault(id(module), []).append(name)
    return Survey(modules, {key: tuple(value) for key, value in names.items()})


def _walk(module: nn.Module, name: str, above: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
    # A module that holds itself would have names without end.
    if id(module) in above:
        return
    if name:
        yield name, module
    if isinstance(module, (MergeableLayer, SavedModule)):
        return
    for child_name, child in module._modules.items():
        # What wrapped experts hold besides adapters is as before, and no business of others.
        inside = isinstance(module, GraLoRAExperts) and child is module.base_layer
        if child is not None and not inside:
            full_name = f"{name}.{child_name}" if name else child_name
            yield from _walk(child, full_name, (*above, id(module)))
