"""Splits a front end's settings into the backend's own and scikit-build-core's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, cast

from .errors import BuildError

CudaSwitch = Literal["auto", "on", "off"]

_PREFIX = "gralora."


@dataclasses.dataclass(frozen=True)
class Settings:
    """The backend's own settings.

    Attributes:
        torch: folder that contains the ``torch`` package to build against; empty means: find it.
        cuda: ``auto`` builds for CUDA when it can, ``on`` insists, ``off`` builds for CPU alone.
    """

    torch: str = ""
    cuda: CudaSwitch = "auto"


def split(
    config_settings: Mapping[str, str | list[str]] | None,
) -> tuple[Settings, dict[str, str | list[str]]]:
    """Separate ``gralora.*`` from the rest, which scikit-build-core checks itself.

    Raises:
        BuildError: for an unknown name or a value that is not accepted.
    """
    own: dict[str, str] = {}
    rest: dict[str, str | list[str]] = {}
    for name, value in (config_settings or {}).items():
        if name.startswith(_PREFIX):
            own[name.removeprefix(_PREFIX)] = value[-1] if isinstance(value, list) else value
        else:
            rest[name] = value
    unknown = sorted(own.keys() - {"torch", "cuda"})
    if unknown:
        raise BuildError(
            f"unknown setting {_PREFIX}{unknown[0]} (accepted: gralora.torch, gralora.cuda)"
        )
    cuda = own.get("cuda", "auto")
    if cuda not in ("auto", "on", "off"):
        raise BuildError(f"gralora.cuda must be auto, on or off, got {cuda!r}")
    return Settings(torch=own.get("torch", ""), cuda=cast(CudaSwitch, cuda)), rest
