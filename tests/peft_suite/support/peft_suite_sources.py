"""PEFT's tests, from the source distribution of the version that is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


def prepare(folder: Path, sources: Path | None) -> Path:
    """Put PEFT's tests and its settings of pytest into a folder; return that folder.

    Args:
        folder: for the tests, one folder per version below it; what is there is used again.
        sources: an unpacked source distribution; None downloads the one of the installed version.

    Raises:
        ValueError: the sources are of another version than the installed PEFT.

    """
    wanted = version("peft")
    target = folder / wanted
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        origin = sources or _download(wanted, Path(scratch))
        found = _version(origin)
        if found != wanted:
            raise ValueError(
                f"prepare: the sources must be of the installed PEFT {wanted}, got {found} "
                f"in {origin}"
            )
        copy = Path(scratch) / "copy"
        shutil.copytree(origin / "tests", copy / "tests")
        shutil.copy(origin / "pyproject.toml", copy)
        # The tests import one another as a package; source distributions lack the file of one.
        (copy / "tests" / "__init__.py").touch()
        copy.rename(target)
    return target


def _download(wanted: str, scratch: Path) -> Path:
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:")
    subprocess.run((*command, f"--dest={scratch}", f"peft=={wanted}"), check=True)
    (archive,) = scratch.glob("*.tar.gz")
    return unpack(archive, scratch / "unpacked")


def unpack(archive: Path, target: Path) -> Path:
    """Unpack an archive that holds one folder; return that folder.

    Raises:
        tarfile.FilterError: a member that would lie outside of the target.
        ValueError: more or less than one folder.

    """
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    content = list(target.iterdir())
    if len(content) != 1 or not content[0].is_dir():
        names = sorted(path.name for path in content)
        raise ValueError(f"unpack: the archive must hold one folder, got {names} in {archive}")
    return content[0]


def _version(origin: Path) -> str | None:
    text = (origin / "PKG-INFO").read_text(encoding="utf-8")
    found = re.search(r"^Version: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None
