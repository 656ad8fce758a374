"""Dotted names of modules: what lies in what, and how names end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set


def owner(name: str, modules: Set[str]) -> str | None:
    """The innermost of `modules` that `name` is or lies in."""
    while name:
        if name in modules:
            return name
        name = name.rpartition(".")[0]
    return None


def is_inside(name: str, modules: Set[str]) -> bool:
    """Whether `name` is one of `modules`, or inside one."""
    return owner(name, modules) is not None


def outermost(modules: Set[str]) -> set[str]:
    """Those of `modules` that lie in no other of them."""
    return {name for name in modules if not is_inside(name.rpartition(".")[0], modules)}


def endings(name: str) -> Iterator[str]:
    """The name itself, then what follows each of its dots."""
    while name:
        yield name
        name = name.partition(".")[2]


class Suffixes:
    """Tells which of many texts a name ends in, wherever in the name they start.

    Args:
        texts: not empty ones.

    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(texts)
        self._lengths = sorted({len(text) for text in self.texts})

    def of(self, name: str) -> list[str]:
        """Those texts, the shortest first."""
        ends = (name[-length:] for length in self._lengths if length <= len(name))
        return [end for end in ends if end in self.texts]
