"""How a LoRA's files name layers: as targets, and in the patterns of single layers.

PEFT reads a list of targets as ends of names, and a pattern's key as a regular expression for the
end of one. Both are written such that they can mean nothing but the layers; keys of files that
nobody vouches for are read as text and never run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Generic, TypeVar

from gralora.injection.paths import endings

T = TypeVar("T")

# Far beyond any model's names; the ends of a name together grow with the square of its length.
_MAX_LENGTH = 1000

_PLAIN = re.compile(r"[\w.\-]+")
_ESCAPED = re.compile(r"(?:[\w.\-]|\\[^\w])+")


def check_lengths(names: Iterable[str], *, who: str) -> None:
    """Raise ValueError for a name that no module has."""
    for name in names:
        if len(name) > _MAX_LENGTH:
            raise ValueError(
                f"{who}: names of tensors must have at most {_MAX_LENGTH} characters, got "
                f"{len(name)} in {name:.100}…"
            )


def write_targets(names: Collection[str], *, as_list: bool) -> list[str] | str:
    """Layers for ``target_modules``: full names, or a regular expression of them."""
    if as_list:
        return sorted(names)
    return "|".join(re.escape(name) for name in sorted(names))


def write_pattern(values: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    """Values by layer under keys that PEFT matches with that layer alone.

    Args:
        values: by full name.
        names: of all layers, which a key must not match by accident.

    """
    taken = {ending for name in names for ending in endings(name.partition(".")[2])}
    return {
        name if _PLAIN.fullmatch(name) and name not in taken else f"^{re.escape(name)}": value
        for name, value in sorted(values.items())
    }


class PatternReader(Generic[T]):
    """Values of single layers by PEFT's rule: the first key that a name ends with, dot by dot.

    Args:
        pattern: as the config has it.
        field: of the config, for errors.
        who: opens errors.

    Raises:
        ValueError: a key that is a regular expression of another kind than an escaped name.

    """

    def __init__(self, pattern: Mapping[str, T], *, field: str, who: str) -> None:
        self._ends: dict[str, tuple[int, T]] = {}
        self._whole: dict[str, tuple[int, T]] = {}
        for place, (key, value) in enumerate(pattern.items()):
            text = key.removeprefix("^").removesuffix("$")
            if not _ESCAPED.fullmatch(text):
                raise ValueError(
                    f"{who}: keys of {field} must be names of layers or their ends, got "
                    f"{key!r:.200} (regular expressions are not run; write the names)"
                )
            kept = self._whole if key.startswith("^") else self._ends
            kept.setdefault(re.sub(r"\\(.)", r"\1", text), (place, value))

    def of(self, name: str, default: T) -> T:
        """The value for a layer by its full name."""
        found = [self._ends[ending] for ending in endings(name) if ending in self._ends]
        if name in self._whole:
            found.append(self._whole[name])
        return min(found, key=lambda entry: entry[0])[1] if found else default
