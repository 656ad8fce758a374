"""A few of many names, for messages."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

_SHOWN = 5
_LENGTH = 300


def some(entries: Iterable[str]) -> str:
    """The first few entries, or "none"."""
    first = list(islice(entries, _SHOWN + 1))
    more = ", …" if len(first) > _SHOWN else ""
    return (", ".join(entry[:_LENGTH] for entry in first[:_SHOWN]) or "none") + more
