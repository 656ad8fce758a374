"""The folder that an adapter is written to: one that takes nobody's files away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gralora.injection.listing import some
from gralora.storage.atomic import leftovers
from gralora.storage.pair import CONFIG_NAME, TENSORS_NAME

_ADAPTER = (CONFIG_NAME, TENSORS_NAME)
_MODEL = "config.json"


def check_out(out: str | os.PathLike[str], *, overwrite: bool, who: str) -> Path:
    """The output's folder, once nothing of it would be lost.

    Args:
        out: absent, or an empty folder; what a killed write left does not count.
        overwrite: whether the adapter that the folder holds may be replaced; never in the folder of
            a model.
        who: opens errors.

    Raises:
        FileExistsError: the folder holds something else.
        NotADirectoryError: it is a file.

    """
    folder = Path(out)
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise NotADirectoryError(f"{who}: out must be a folder, got {folder}")
    unfinished = {path.name for name in _ADAPTER for path in leftovers(folder, name)}
    found = sorted(path.name for path in folder.iterdir() if path.name not in unfinished)
    if not found:
        return folder
    replaceable = _MODEL not in found and any(name in found for name in _ADAPTER)
    if overwrite and replaceable:
        return folder
    rule = "out must be absent or an empty folder"
    if overwrite:
        rule += ", or hold an adapter and no model"
    hint = " (overwrite replaces the adapter there)" if replaceable else ""
    raise FileExistsError(f"{who}: {rule}, got {folder} with {some(found)}{hint}")


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; where the block fails, the empty ones go again.

    Raises:
        OSError: it cannot be made.

    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()
        raise
