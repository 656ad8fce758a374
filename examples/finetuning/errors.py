"""What goes wrong for a reason that the user can mend."""

from __future__ import annotations


class FinetuneError(RuntimeError):
    """The run cannot start or its result is wrong; the text says why and what to do."""
