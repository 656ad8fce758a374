"""PEFT's rule for the ends of module names, and lists that mean the same under it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable


def ends_in(name: str, endings: Collection[str]) -> bool:
    """Whether a module's name is one of `endings` or ends in one after a dot."""
    while True:
        if name in endings:
            return True
        _, dot, name = name.partition(".")
        if not dot:
            return False


def list_or_expression(targets: Collection[str], module_names: Iterable[str]) -> list[str] | str:
    """Full names of targets; a regular expression of them where ends of names would find more.

    Args:
        targets: full names of the modules that are meant.
        module_names: full names of all modules.

    """
    wanted = set(targets)
    if any(ends_in(name, wanted) for name in module_names if name not in wanted):
        return "|".join(re.escape(name) for name in sorted(wanted))
    return sorted(wanted)
