"""Names as messages and tables show them: a few of many, and nothing that a terminal obeys."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

_SHOWN = 5
_LENGTH = 300


def some(entries: Iterable[str]) -> str:
    """The first few entries, or "none"."""
    first = list(islice(entries, _SHOWN + 1))
    more = ", …" if len(first) > _SHOWN else ""
    names = (shown(entry[:_LENGTH])[:_LENGTH] for entry in first[:_SHOWN])
    return (", ".join(names) or "none") + more


def shown(text: str) -> str:
    r"""The text with escapes (``\x1b``) for what cannot be printed, as commands of a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
