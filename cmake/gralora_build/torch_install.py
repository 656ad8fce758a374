"""Finds the torch to build against, by asking an interpreter that really imports it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .errors import BuildError

MINIMUM = (2, 11)

# A torch reached through a .pth file or an import hook is invisible to a look into site-packages,
# so the child imports it. Its answer is the last line: torch may print warnings above it.
_PROBE = """
import json, pathlib, sys
if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
try:
    import torch
except ModuleNotFoundError as error:
    if error.name == "torch":
        print("null")
        sys.exit()
    raise
print(json.dumps({
    "root": str(pathlib.Path(torch.__file__).resolve().parent),
    "version": str(torch.__version__),
    "cuda": torch.version.cuda or "",
    "cxx11_abi": bool(torch.compiled_with_cxx11_abi()),
}))
"""


@dataclasses.dataclass(frozen=True)
class TorchInstall:
    """One installed torch.

    Attributes:
        root: folder of the ``torch`` package, with ``include`` and ``lib`` in it.
        version: ``torch.__version__``, with its local part: ``2.14.1+cu130``.
        cuda: CUDA version that torch was built with, ``13.0``; empty for a CPU or ROCm build.
        cxx11_abi: value of ``_GLIBCXX_USE_CXX11_ABI``.
    """

    root: Path
    version: str
    cuda: str
    cxx11_abi: bool

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; ``(2, 14)`` for 2.14.1+cu130."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def find_torch(folder: str = "") -> TorchInstall | None:
    """The torch in ``folder``; else the target environment's; else the build environment's.

    pip runs the hooks of an isolated build in the target's own interpreter, and hides the target's
    packages with PYTHONPATH and PYTHONNOUSERSITE: a child without those two sees them.

    Returns:
        None when there is no torch.

    Raises:
        BuildError: when ``folder`` holds no torch, or a torch that is there does not import or is
            too old.
    """
    if folder:
        return _in_folder(Path(folder))
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    target = {name: value for name, value in os.environ.items() if name not in hidden}
    found = probe(env=target) or probe(env=os.environ)
    return _new_enough(found) if found else None


def probe(folder: str = "", *, env: Mapping[str, str]) -> TorchInstall | None:
    """Import torch in a child of this interpreter and report what it is; None without torch."""
    child = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE, folder],
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(
            f"torch is installed for {sys.executable} but does not import: {reason}\n"
            "Repair it (pip install --force-reinstall torch), or name another one with "
            "-C gralora.torch=DIR."
        )
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    if answer is None:
        return None
    return TorchInstall(
        root=Path(answer["root"]),
        version=answer["version"],
        cuda=answer["cuda"],
        cxx11_abi=answer["cxx11_abi"],
    )


def _in_folder(folder: Path) -> TorchInstall:
    folder = folder.expanduser().resolve()
    if not (folder / "torch" / "__init__.py").is_file():
        raise BuildError(
            f"gralora.torch must be a folder that contains the torch package, got {folder} "
            "(python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])' "
            "prints it)"
        )
    found = probe(str(folder), env=os.environ)
    if found is None:
        raise BuildError(f"torch in {folder} is not a package that {sys.executable} can import")
    return _new_enough(found)


def _new_enough(found: TorchInstall) -> TorchInstall:
    if found.release < MINIMUM:
        needed = ".".join(map(str, MINIMUM))
        raise BuildError(
            f"torch must be at least {needed}, got {found.version} in {found.root}\n"
            f"Run pip install 'torch>={needed}' first."
        )
    return found
