"""Keys of `rank_pattern`, `alpha_pattern` and `k_pattern`; the rules are PEFT's.

Source: ``get_pattern_key`` of PEFT 0.21. A key that is the full name wins here; there, the first
key that matches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

from gralora.injection.paths import endings

Value = TypeVar("Value")

# Of such a key only the dots are special, so that tables of thousands of names need no search.
_PLAIN = re.compile(r"[\w.-]+")


def parse_key(key: str) -> re.Pattern[str] | None:
    """Expression for the end of a name, from its start or a dot on; None for a plain key.

    Raises:
        re.error: the key is no regular expression, or none for a part of a name.

    """
    if _PLAIN.fullmatch(key):
        return None
    re.compile(key)
    return re.compile(rf"(.*\.)?({key})$")


def compile_layers(pattern: str) -> re.Pattern[str]:
    """Expression that finds the number, ``index``, behind a name that `layers_pattern` gives.

    Raises:
        re.error: the pattern is no regular expression, or none for a part of a name.

    """
    re.compile(pattern)
    return re.compile(rf"(?:^|.*?\.)(?:{pattern})\.(?P<index>\d+)\.")


class PatternTable(Generic[Value]):
    """Values for names by keys that may be full names, ends of names or regular expressions."""

    def __init__(self, patterns: Mapping[str, Value]) -> None:
        self._patterns = patterns
        self._places = {key: place for place, key in enumerate(patterns)}
        self._expressions: dict[str, re.Pattern[str]] = {}
        self._dots: dict[int, set[tuple[int, ...]]] = {}
        for key in patterns:
            expression = parse_key(key)
            if expression is None:
                dots = tuple(place for place, letter in enumerate(key) if letter == ".")
                self._dots.setdefault(len(key), set()).add(dots)
            else:
                self._expressions[key] = expression

    def matching(self, name: str) -> list[str]:
        """Keys that hold for `name`, the one that decides first."""
        keys = self._plain_keys(name)
        keys |= {key for key, expression in self._expressions.items() if expression.match(name)}
        keys |= {name} & self._places.keys()
        return sorted(keys, key=lambda key: (key != name, self._places[key]))

    def value(self, name: str, default: Value) -> Value:
        """Value for `name`: of the key that is the name itself, else of the first that matches."""
        keys = self.matching(name)
        return self._patterns[keys[0]] if keys else default

    def _plain_keys(self, name: str) -> set[str]:
        # A dot stands for any letter, so a key is what an ending becomes with the key's dots in it.
        keys: set[str] = set()
        for ending in endings(name):
            for dots in self._dots.get(len(ending), ()):
                letters = list(ending)
                for place in dots:
                    letters[place] = "."
                keys.add("".join(letters))
        return keys & self._places.keys()
