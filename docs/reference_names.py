"""What gralora makes public: its modules, their functions and classes, and the members of these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

# In the order of the page; a name that two of them have is documented where it comes first.
MODULES = (
    "gralora",
    "gralora.nn",
    "gralora.functional",
    "gralora.adapters",
    "gralora.checkpoints",
    "gralora.integrations.peft",
    "gralora.kernels",
    "gralora.reference",
)
# What torch prints of a module is nobody's to call.
_UNINTERESTING = {"extra_repr"}


@dataclass(frozen=True)
class Entry:
    """A public function or class.

    Attributes:
        name: in full, as users import it.
        value: the function or class.
        members: public methods and properties of a class that no base on the page has.
        bases: full names of its nearest bases that are on the page.

    """

    name: str
    value: Callable[..., Any]
    members: tuple[Member, ...] = ()
    bases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """A public method or property of a class.

    Attributes:
        name: ``Class.member``.
        value: the function, bound where it belongs to the class; a property's getter.
        is_property: whether it is read without a call.
        takes_self: whether the first parameter is the object.

    """

    name: str
    value: Callable[..., Any]
    is_property: bool
    takes_self: bool


@dataclass(frozen=True)
class Module:
    """A public module.

    Attributes:
        name: in full.
        value: the module.
        entries: what is documented in it.
        elsewhere: full names of what it has too, and another module on the page documents.

    """

    name: str
    value: ModuleType
    entries: tuple[Entry, ...]
    elsewhere: tuple[str, ...]


def public_modules() -> list[Module]:
    """Every public module with what is public in it; nothing comes twice."""
    found = [(module, name) for module in MODULES for name in _names(import_module(module))]
    homes: dict[Any, str] = {}
    for module, name in found:
        homes.setdefault(getattr(import_module(module), name), f"{module}.{name}")
    modules = []
    for module in MODULES:
        value = import_module(module)
        names = [name for owner, name in found if owner == module]
        entries = [
            _entry(f"{module}.{name}", getattr(value, name), homes)
            for name in names
            if homes[getattr(value, name)] == f"{module}.{name}"
        ]
        others = [homes[getattr(value, name)] for name in names]
        elsewhere = tuple(home for home in others if home.rpartition(".")[0] != module)
        modules.append(Module(module, value, tuple(entries), elsewhere))
    return modules


def _names(module: ModuleType) -> list[str]:
    """Its functions and classes: those of ``__all__``, or all that it defines itself."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        return [name for name, value in vars(module).items() if _is_own(module, name, value)]
    return [name for name in listed if callable(getattr(module, name))]


def _is_own(module: ModuleType, name: str, value: object) -> bool:
    return (
        not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    )


def _entry(name: str, value: Any, homes: dict[Any, str]) -> Entry:
    if not inspect.isclass(value):
        return Entry(name, value)
    documented = [base for base in value.__mro__[1:] if base in homes]
    nearest = [b for b in documented if not any(b in other.__mro__[1:] for other in documented)]
    members = tuple(_members(value, documented))
    return Entry(name, value, members, tuple(homes[base] for base in nearest))


def _members(value: type, documented: list[type]) -> Iterator[Member]:
    theirs = {owner for base in documented for owner in base.__mro__}
    seen = set(_UNINTERESTING)
    for owner in value.__mro__:
        if owner in theirs or not owner.__module__.startswith("gralora"):
            continue
        for name, member in vars(owner).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            shown = f"{value.__name__}.{name}"
            if isinstance(member, property) and member.fget is not None:
                yield Member(shown, member.fget, is_property=True, takes_self=True)
            elif isinstance(member, classmethod | staticmethod):
                yield Member(shown, getattr(value, name), is_property=False, takes_self=False)
            elif inspect.isfunction(member):
                yield Member(shown, member, is_property=False, takes_self=True)
