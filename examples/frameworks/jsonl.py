"""Examples for TRL from a file, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetuning.errors import FinetuneError

# The columns of which TRL wants all of one set.
_COLUMNS = ({"text"}, {"messages"}, {"prompt", "completion"})
HELD_OUT_SHARE = 0.1


def load(path: Path, held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what to train on, and the end of the file: a tenth of it, at most `held_out` rows.

    Raises:
        FinetuneError: a file that is missing, no JSON Lines, has other columns or too few rows.

    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise FinetuneError(f"--data: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise FinetuneError(f"--data: {path} must have a JSON object a line: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not any(columns <= row.keys() for columns in _COLUMNS):
            got = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise FinetuneError(
                f"--data: row {number} of {path} must be an object with text, with messages, or "
                f"with prompt and completion, got {got or 'no columns'}"
            )
    if len(rows) < 2:
        raise FinetuneError(f"--data: {path} must have two rows or more, got {len(rows)}")
    count = min(held_out, max(1, int(len(rows) * HELD_OUT_SHARE)))
    return rows[:-count], rows[-count:]
