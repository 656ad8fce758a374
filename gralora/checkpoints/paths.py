"""Names of files that somebody else's index or folder gives: they must stay in that folder."""

from __future__ import annotations

import os
from pathlib import Path

WHO = "merge_checkpoint"
# The one folder of a model whose files go along; transformers keeps templates by name there.
TEMPLATES = "additional_chat_templates"
_MAX_LENGTH = 255


def check_plain(name: object, what: str) -> str:
    """The name, once it is known to be that of a file and not of a way to one.

    Raises:
        ValueError: it is empty, has separators or unprintable characters, or means a folder.

    """
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _MAX_LENGTH
        or name in (".", "..")
        or "/" in name
        or "\\" in name
        or not name.isprintable()
    ):
        raise ValueError(
            f"{WHO}: {what} must be the plain name of a file in that folder, got {name!r:.300}"
        )
    return name


def locate(directory: Path, name: str) -> Path:
    """Where a file of a folder really lies.

    Links may lead to other files of the folder and, in the Hugging Face cache, from
    ``<model>/snapshots/<revision>`` to ``<model>/blobs``.

    Raises:
        OSError: it does not exist.
        ValueError: a link leads elsewhere.

    """
    root = Path(os.path.realpath(directory))
    path = Path(os.path.realpath(root / name, strict=True))
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(path.is_relative_to(place) for place in allowed):
        raise ValueError(
            f"{WHO}: files must lie in the folder, got the link {directory / name}, which leads "
            f"to {path}"
        )
    return path
