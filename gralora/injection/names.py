"""Which module names a configuration selects; the rules are PEFT's.

Source: ``check_target_module_exists`` and ``_set_trainable`` of PEFT 0.21.
One rule is wider here: `layers_to_transform` holds for every kind of `target_modules`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gralora.config import ALL_LINEAR, GraLoRAConfig
from gralora.injection.paths import Suffixes, endings
from gralora.injection.patterns import compile_layers

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
        return [ending for ending in endings(name) if ending in self._endings]


def saved_entries(config: GraLoRAConfig) -> Suffixes:
    """Ends of the names of saved modules: `modules_to_save` and the head of the task."""
    heads = _TASK_HEADS.get(config.task_type or "", ())
    return Suffixes((*(config.modules_to_save or ()), *heads))


def layer_index(config: GraLoRAConfig, name: str) -> int | None:
    """Index of the layer that `name` lies in, or None where it has none."""
    patterns = config.layers_pattern or ()
    if not patterns:
        # The first number counts: later ones may be those of experts inside a layer.
        match = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
        return int(match["index"]) if match else None
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        match = compile_layers(pattern).match(name)
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
