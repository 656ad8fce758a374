"""Chooses the folder that CMake builds in, so that what is compiled stays for the next build.

    build/cp311-torch2.14.1_cu130-cuda/     one per interpreter, torch and kind of build
    build/kernels/…                         shared: the kernels know nothing of torch

A build folder that the user names (``-C build-dir=…``) is left alone and holds everything.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from .plan import Plan

ConfigSettings = dict[str, str | list[str]]

_NAMES = ("build-dir", "skbuild.build-dir")


@contextlib.contextmanager
def prepared(plan: Plan, rest: ConfigSettings) -> Iterator[ConfigSettings]:
    """Yield scikit-build-core's settings with the plan and, unless one is named, a build folder.

    The folder ``build`` is locked meanwhile: two builds in it would write the same objects.
    """
    complete: ConfigSettings = {**rest, "cmake.define.GRALORA_BUILD_PLAN": plan.to_json()}
    source = Path.cwd()
    # A checkout that cannot be written to is built in scikit-build-core's temporary folder.
    if is_named(rest) or not os.access(source, os.W_OK):
        yield complete
        return
    build = source / "build"
    build.mkdir(exist_ok=True)
    complete["build-dir"] = f"build/{key(plan)}"
    complete["cmake.define.GRALORA_KERNELS_DIR"] = str(build / "kernels")
    with _locked(build / ".lock"):
        yield complete


def is_named(rest: Mapping[str, object], env: Mapping[str, str] = os.environ) -> bool:
    """True when the user has chosen a build folder."""
    return any(name in rest for name in _NAMES) or "SKBUILD_BUILD_DIR" in env


def key(plan: Plan) -> str:
    """The name of the build folder: ``cp311-torch2.14.1_cu130-cuda``."""
    version = re.sub(r"[^\w.]", "_", plan.torch.version)
    kind = "cuda" if plan.toolkit else "cpu"
    return f"cp{sys.version_info.major}{sys.version_info.minor}-torch{version}-{kind}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows, where nothing else of this file matters either
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"gralora: waiting for another build in {path.parent}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
