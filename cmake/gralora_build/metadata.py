"""Adds torch to the wheel's dependencies, at the version that the wheel was compiled for.

scikit-build-core calls this module (``tool.dynamic-metadata`` in pyproject.toml). A torch extension
works with the minor version it was compiled for; with the exact requirement in the metadata no
resolver and no wheel cache pairs it with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import plan
from .settings import Settings
from .torch_install import MINIMUM

_state = "wheel"


def build_state(state: str) -> None:
    """Remember what is being made: ``sdist``, ``wheel``, ``editable`` or metadata for one."""
    global _state
    _state = state


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    """The field ``dependencies``: the fixed ones of pyproject.toml, and torch."""
    return {"dependencies": [*settings["dependencies"], _torch_requirement()]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """A wheel's dependencies are narrower than those of the source archive it is built from."""
    return {"dependencies": True}


def _torch_requirement() -> str:
    if _state == "sdist":
        return f"torch>={'.'.join(map(str, MINIMUM))}"
    decided = plan.decided() or plan.decide(Settings())
    major, minor = decided.torch.release
    return f"torch=={major}.{minor}.*"
