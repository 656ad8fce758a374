"""Checks of what merge_checkpoint is called with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gralora.checkpoints.layout import LAYOUTS
from gralora.checkpoints.paths import WHO
from gralora.storage.pair import CONFIG_NAME as _ADAPTER_CONFIG

PathLike = str | os.PathLike[str]
Adapters = PathLike | Sequence[PathLike | tuple[PathLike, float]]
# Times the largest scale that a config may have, it still is a float32.
_MAX_WEIGHT = 1e6
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_arguments(
    device: object, adapters: Adapters, dtype: object, layout: object
) -> tuple[torch.device, list[tuple[Path, float]]]:
    """The device, and each adapter's folder with its weight.

    Raises:
        TypeError: a dtype or weight of the wrong kind.
        ValueError: no adapter, or a value out of range.
        RuntimeError: a device that cannot be used.

    """
    if dtype is not None and dtype not in _DTYPES:
        accepted = ", ".join(str(kind) for kind in _DTYPES)
        raise TypeError(f"{WHO}: dtype must be None or one of {accepted}, got {dtype!r}")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"{WHO}: layout must be None or one of {LAYOUTS}, got {layout!r}")
    where = _usable(device)
    entries = [adapters] if isinstance(adapters, (str, os.PathLike)) else list(adapters)
    if not entries:
        raise ValueError(f"{WHO}: adapters must hold at least one, got none")
    pairs = [entry if isinstance(entry, tuple) else (entry, 1.0) for entry in entries]
    for folder, weight in pairs:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"{WHO}: the weight of {folder} must be a number, got {weight!r}")
        if not abs(weight) <= _MAX_WEIGHT:
            raise ValueError(
                f"{WHO}: the weight of {folder} must lie within {_MAX_WEIGHT:g}, got {weight}"
            )
    return where, [(Path(folder), float(weight)) for folder, weight in pairs]


def _usable(device: object) -> torch.device:
    refusal = f"{WHO}: the device must be cpu or cuda, got {device}"
    try:
        where: torch.device = torch.device(device)  # type: ignore[call-overload]
    except RuntimeError:
        raise RuntimeError(refusal) from None
    if where.type not in ("cpu", "cuda"):
        raise RuntimeError(refusal)
    try:
        torch.empty(0, device=where)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise RuntimeError(f"{WHO}: the device {device} cannot be used: {first}") from None
    return where


def check_target(out: PathLike, base: PathLike, adapters: Sequence[PathLike]) -> Path:
    """The absolute path of the output, which is absent or an empty folder.

    Raises:
        OSError: something is there.
        ValueError: it lies in the base model or an adapter.

    """
    target = Path(os.path.abspath(out))
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        raise FileExistsError(f"{WHO}: out must be absent or an empty folder, got {target}")
    if target.is_symlink():
        raise FileExistsError(f"{WHO}: out must be no link, got {target}")
    place = Path(os.path.realpath(target))
    for source, what in ((base, "the base model"), *((folder, folder) for folder in adapters)):
        if place.is_relative_to(os.path.realpath(source)):
            raise ValueError(f"{WHO}: out must lie outside {what}, got {target}")
    return target


@contextlib.contextmanager
def hint_at_swap(base: PathLike, adapters: Sequence[Path]) -> Iterator[None]:
    """Let a file that is missing be a hint where the adapter's is in the base's folder."""
    try:
        yield
    except FileNotFoundError as error:
        swapped = (Path(base) / _ADAPTER_CONFIG).exists() and any(
            folder.is_dir() and not (folder / _ADAPTER_CONFIG).exists() for folder in adapters
        )
        if not swapped or error.errno is not None:
            raise
        raise FileNotFoundError(f"{error} (base and adapter are swapped?)") from None
