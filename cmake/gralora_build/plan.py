"""Decides what is built: which torch it is for, and CUDA or the reason why not."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from .errors import BuildError
from .settings import Settings
from .toolkit import Search, Toolkit, find_toolkit, wheel_requirements
from .torch_install import MINIMUM, TorchInstall, find_torch

_CUDA_OF_NEW_TORCH = "13.0"

NO_TORCH = (
    "no torch in this environment, and build isolation is off, so none could be fetched.\n"
    "Run pip install torch first, or leave out --no-build-isolation, or name the folder that "
    "contains the torch package with -C gralora.torch=DIR."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is built.

    Attributes:
        torch: the torch to compile and link against.
        toolkit: the CUDA toolkit, None for a CPU build.
        reason: why this is a CPU build; empty for a CUDA build.
    """

    torch: TorchInstall
    toolkit: Toolkit | None
    reason: str

    def describe(self) -> str:
        """One line for the build's log."""
        against = f"gralora: building against torch {self.torch.version} in {self.torch.root}"
        if self.toolkit:
            return f"{against}, with CUDA {self.toolkit.version} in {self.toolkit.root}"
        return f"{against}, for CPU only: {self.reason}"

    def to_json(self) -> str:
        """The form that CMake reads (cmake/BuildPlan.cmake)."""
        cuda = self.toolkit
        return json.dumps(
            {
                "torch_root": str(self.torch.root),
                "torch_version": self.torch.version,
                "torch_cxx11_abi": int(self.torch.cxx11_abi),
                "cuda_version": cuda.version if cuda else "",
                "cuda_root": str(cuda.root) if cuda else "",
                "cuda_include": str(cuda.include) if cuda else "",
                "cudart_static": str(cuda.cudart_static) if cuda else "",
                "reason": self.reason,
            }
        )


_decided: Plan | None = None


def decide(settings: Settings) -> Plan:
    """Make the plan of this build; it is kept for the metadata provider.

    Raises:
        BuildError: without torch, or when ``gralora.cuda=on`` cannot be had.
    """
    global _decided
    torch = find_torch(settings.torch)
    if torch is None:
        raise BuildError(NO_TORCH)
    toolkit, reason = _choose_cuda(torch, settings)
    if settings.cuda == "on" and toolkit is None:
        raise BuildError(f"gralora.cuda=on, but {reason}")
    _decided = Plan(torch=torch, toolkit=toolkit, reason=reason)
    return _decided


def decided() -> Plan | None:
    """The plan of this process, None before ``decide``."""
    return _decided


def missing_requirements(settings: Settings) -> list[str]:
    """What the build environment needs beyond the target's packages: torch, a CUDA compiler."""
    torch = find_torch(settings.torch)
    missing = [] if torch else [f"torch>={'.'.join(map(str, MINIMUM))}"]
    # A torch that is yet to come will be the newest, and a CUDA build where there are such.
    cuda = torch.cuda if torch else _CUDA_OF_NEW_TORCH
    if not cuda or settings.cuda == "off" or _find(cuda, torch).toolkit:
        return missing
    return [*missing, *wheel_requirements(torch.cuda if torch else "")]


def _choose_cuda(torch: TorchInstall, settings: Settings) -> tuple[Toolkit | None, str]:
    if not torch.cuda:
        return None, f"torch {torch.version} is not a CUDA build"
    if settings.cuda == "off":
        return None, "switched off by gralora.cuda=off"
    search = _find(torch.cuda, torch)
    if search.toolkit:
        return search.toolkit, ""
    major = torch.cuda.split(".")[0]
    reason = f"no nvcc of CUDA {major}, the version of torch {torch.version}"
    if search.rejected:
        reason += f" ({'; '.join(search.rejected)})"
    wheels = wheel_requirements(torch.cuda)
    if wheels:
        quoted = " ".join(f"'{wheel}'" for wheel in wheels)
        return None, f"{reason}; install the toolkit, or run pip install {quoted}"
    return None, f"{reason}; install the toolkit"


def _find(cuda: str, torch: TorchInstall | None) -> Search:
    folders = [Path(entry) for entry in sys.path if entry]
    if torch:
        # With build isolation the target's packages are not on this interpreter's path.
        folders.append(torch.root.parent)
    return find_toolkit(int(cuda.split(".")[0]), site_folders=folders)
