"""Which module names a configuration selects; the rules are PEFT's.

Source: ``check_target_module_exists``, ``get_pattern_key`` and ``_set_trainable`` of PEFT 0.21.
One rule is wider here: `layers_to_transform` holds for every kind of `target_modules`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from gralora.config import ALL_LINEAR, GraLoRAConfig

Value = TypeVar("Value")

_CLASSIFIER_HEADS = ("classifier", "score")
_TASK_HEADS = {
    "SEQ_CLS": _CLASSIFIER_HEADS,
    "TOKEN_CLS": _CLASSIFIER_HEADS,
    "QUESTION_ANS": ("qa_outputs",),
}


def is_all_linear(config: GraLoRAConfig) -> bool:
    """Whether every linear layer is wanted."""
    targets = config.target_modules
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


class NameMatcher:
    """Tells which entries of `target_modules` or `exclude_modules` mean a name.

    Args:
        entries: names and endings of names, one regular expression, or None.

    """

    def __init__(self, entries: str | Sequence[str] | None) -> None:
        self._expression = re.compile(entries) if isinstance(entries, str) else None
        self._endings = frozenset(entries if self._expression is None and entries else ())
        self.entries = (entries,) if isinstance(entries, str) else tuple(entries or ())

    def matching(self, name: str) -> list[str]:
        """Entries that `name` is, or ends in after a dot, or that match the whole of it."""
        if self._expression is not None:
            return [self._expression.pattern] if self._expression.fullmatch(name) else []
        # Looking up every ending keeps lists of thousands of full names fast.
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        return [name[start:] for start in starts if name[start:] in self._endings]


def saved_entries(config: GraLoRAConfig) -> tuple[str, ...]:
    """Endings of the names of saved modules: `modules_to_save` and the head of the task."""
    heads = _TASK_HEADS.get(config.task_type or "", ())
    return tuple(dict.fromkeys((*(config.modules_to_save or ()), *heads)))


def matching_saved_entries(config: GraLoRAConfig, name: str) -> list[str]:
    """Entries that make `name` a saved module; an ending need not start at a dot."""
    return [entry for entry in saved_entries(config) if name.endswith(entry)]


def layer_index(config: GraLoRAConfig, name: str) -> int | None:
    """Index of the layer that `name` lies in, or None where it has none."""
    patterns = config.layers_pattern or ()
    if not patterns:
        # The first number counts: later ones may be those of experts inside a layer.
        match = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
        return int(match["index"]) if match else None
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
        if match:
            return int(match["index"])
    return None


def wanted_layers(config: GraLoRAConfig) -> tuple[int, ...]:
    """Indices that `layers_to_transform` names; empty means every layer."""
    indices = config.layers_to_transform
    if indices is None:
        return ()
    return (indices,) if isinstance(indices, int) else tuple(indices)


def is_in_wanted_layers(config: GraLoRAConfig, name: str) -> bool:
    """Whether `layers_to_transform` lets `name` through."""
    indices = wanted_layers(config)
    return not indices or layer_index(config, name) in indices


def pattern_matches(key: str, name: str) -> bool:
    """Whether a key of `rank_pattern`, `alpha_pattern` or `k_pattern` holds for `name`."""
    return key == name or re.match(rf"(.*\.)?({key})$", name) is not None


def pattern_value(patterns: Mapping[str, Value], name: str, default: Value) -> Value:
    """Value for `name`: that of the key that is the name itself, else of the first that matches."""
    if name in patterns:
        return patterns[name]
    for key, value in patterns.items():
        if pattern_matches(key, name):
            return value
    return default
