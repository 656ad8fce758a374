"""The folder of results: what trained, in the format of its method."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn

import gralora
from finetuning.errors import FinetuneError

if TYPE_CHECKING:
    from finetuning.options import Options


def load_figure() -> ModuleType:
    """Return :mod:`finetuning.figure`, before any time is spent on what it is to draw.

    Raises:
        FinetuneError: matplotlib is not installed.

    """
    try:
        return importlib.import_module("finetuning.figure")
    except ImportError as error:
        raise FinetuneError(
            f'the loss curve needs {error.name}: run `pip install ".[examples]"`'
        ) from error


def make_folder(folder: Path) -> None:
    """Make the folder for the results.

    Raises:
        FinetuneError: it cannot be made.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinetuneError(f"--out: cannot make the folder {folder}: {error.strerror}") from error


def save_trained(model: nn.Module, tokenizer: Any, options: Options) -> None:
    """Save the adapter as PEFT does, or the whole model as transformers does."""
    folder = trained_folder(options)
    if options.method == "full":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        gralora.save_adapter(model, folder)


def trained_folder(options: Options) -> Path:
    """Where :func:`save_trained` writes."""
    return options.out / ("model" if options.method == "full" else "adapter")


def list_files(options: Options) -> list[str]:
    """Names of what :func:`save_trained` wrote, below ``options.out``."""
    files = trained_folder(options).rglob("*")
    return sorted(str(path.relative_to(options.out)) for path in files if path.is_file())
