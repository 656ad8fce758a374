"""Finds a CUDA toolkit: an nvcc, and the headers and the static runtime that belong to it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

# Where the installer of the toolkit puts it; last, so that every setting of the user's wins.
DEFAULT_ROOTS = (Path("/usr/local/cuda"),)

# Parts that separate packages bring; an nvcc without them cannot compile a kernel.
_HEADERS = ("cuda_runtime_api.h", "crt/host_defines.h", "cuda_bf16.h")

# NVIDIA's list of the wheels of one release; nvcc stands for the compiler, its device compiler, its
# headers and the runtime, cccl for the C++ headers that those of the runtime include.
_WHEELS = "cuda-toolkit[cccl,nvcc]"


@dataclasses.dataclass(frozen=True)
class Toolkit:
    """A complete CUDA toolkit.

    Attributes:
        root: folder with ``bin/nvcc``.
        version: of nvcc, ``13.0.88``.
        include: folder of ``cuda_runtime_api.h``.
        cudart_static: the static CUDA runtime library.
    """

    root: Path
    version: str
    include: Path
    cudart_static: Path


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found: a toolkit, or one line per place that had an unusable one."""

    toolkit: Toolkit | None
    rejected: tuple[str, ...]


def find_toolkit(
    major: int,
    *,
    env: Mapping[str, str] = os.environ,
    roots: Iterable[Path] = DEFAULT_ROOTS,
    site_folders: Iterable[Path] | None = None,
) -> Search:
    """The first complete toolkit of CUDA version ``major``.

    Args:
        major: major CUDA version that torch was built with.
        env: CUDACXX, CUDA_HOME, CUDA_PATH and PATH are read from it, in this order.
        roots: toolkit folders to try after those.
        site_folders: site-packages folders in which the compiler's wheels may lie; ``sys.path``
            when not given.
    """
    if site_folders is None:
        site_folders = [Path(entry) for entry in sys.path if entry]
    rejected: list[str] = []
    seen: set[Path] = set()
    for nvcc in _candidates(major, env, roots, site_folders):
        if not nvcc.is_file() or nvcc in seen:
            continue
        seen.add(nvcc)
        result = inspect_nvcc(nvcc)
        if isinstance(result, str):
            rejected.append(f"{nvcc}: {result}")
        elif int(result.version.split(".")[0]) != major:
            rejected.append(f"{nvcc} is CUDA {result.version}")
        else:
            return Search(result, tuple(rejected))
    return Search(None, tuple(rejected))


def inspect_nvcc(nvcc: Path) -> Toolkit | str:
    """The toolkit that ``nvcc`` belongs to, or what is wrong with it.

    The nvcc at hand may be a script or a link far from its toolkit, so nvcc itself is asked.
    """
    version = re.search(r"\bV(\d+\.\d+\.\d+)", _output(nvcc, "--version"))
    if not version:
        return "does not say its version"
    root = _root(nvcc) or _root(nvcc.resolve())
    if root is None or not (root / "bin" / "nvcc").is_file():
        return "does not say where its toolkit is"
    folders = [root, *sorted((root / "targets").glob("*"))]
    include = _first(folder / "include" for folder in folders if _has_headers(folder / "include"))
    if include is None:
        return f"{root} lacks the headers {', '.join(_HEADERS)}"
    library = _first(
        path
        for folder in folders
        for name in ("lib64", "lib")
        if (path := folder / name / "libcudart_static.a").is_file()
    )
    if library is None:
        return f"{root} lacks libcudart_static.a"
    return Toolkit(root=root, version=version[1], include=include, cudart_static=library)


def wheel_requirements(cuda: str = "") -> list[str]:
    """The wheels that bring nvcc, its headers and the runtime, all of versions that fit together.

    Args:
        cuda: torch's CUDA version, such as ``13.0``; empty when torch is yet to be fetched, and its
            own requirements decide. Before CUDA 13 the wheels hold no nvcc: no requirement.
    """
    if not cuda:
        return [_WHEELS]
    major, minor = (int(part) for part in cuda.split(".")[:2])
    return [f"{_WHEELS}=={major}.{minor}.*"] if major >= 13 else []


def _candidates(
    major: int, env: Mapping[str, str], roots: Iterable[Path], site_folders: Iterable[Path]
) -> Iterator[Path]:
    path = env.get("PATH", os.defpath)
    if compiler := env.get("CUDACXX"):
        yield Path(shutil.which(compiler, path=path) or compiler)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if root := env.get(name):
            yield Path(root) / "bin" / "nvcc"
    if on_path := shutil.which("nvcc", path=path):
        yield Path(on_path)
    for folder in roots:
        yield folder / "bin" / "nvcc"
    for folder in site_folders:
        yield folder / "nvidia" / f"cu{major}" / "bin" / "nvcc"


def _root(nvcc: Path) -> Path | None:
    """The toolkit's folder as nvcc reports it in the commands that it would run."""
    top = re.search(
        r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.M
    )
    return Path(top[1].strip().strip('"')).resolve() if top else None


def _output(nvcc: Path, *arguments: str) -> str:
    try:
        child = subprocess.run(
            [nvcc, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return child.stdout


def _has_headers(include: Path) -> bool:
    return all((include / header).is_file() for header in _HEADERS)


def _first(paths: Iterable[Path]) -> Path | None:
    return next(iter(paths), None)
