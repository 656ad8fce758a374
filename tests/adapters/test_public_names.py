"""``gralora.adapters``: its names are functions and classes, not the modules they lie in."""

from __future__ import annotations

import pytest

import gralora.adapters


@pytest.mark.parametrize("name", gralora.adapters.__all__)
def test_public_name_can_be_called(name: str) -> None:
    assert callable(getattr(gralora.adapters, name))
