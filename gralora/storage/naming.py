"""Lists of full names that mean the same under PEFT's rule for the ends of names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from gralora.injection.paths import endings


def list_or_expression(targets: Collection[str], module_names: Iterable[str]) -> list[str] | str:
    """Full names of targets; a regular expression of them where ends of names would find more.

    Args:
        targets: full names of the modules that are meant.
        module_names: full names of all modules.

    """
    wanted = set(targets)
    others = (name for name in module_names if name not in wanted)
    if any(ending in wanted for name in others for ending in endings(name)):
        return "|".join(re.escape(name) for name in sorted(wanted))
    return sorted(wanted)
