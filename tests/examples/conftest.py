"""A tiny language model on disk, and the folder of examples made importable."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
for folder in (HERE / "support", HERE.parents[1] / "examples"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama of two layers with a tokenizer of 96 tokens."""
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    from examples_tiny_llama import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def essay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file that is easy to learn."""
    path = tmp_path_factory.mktemp("texts") / "essay.txt"
    path.write_text("the quick brown fox jumps over the lazy dog; " * 120, encoding="utf-8")
    return path


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """The settings of torch are afterwards what they were before."""
    from examples_torch_settings import kept_settings

    with kept_settings():
        yield


@pytest.fixture(scope="module")
def torch_settings_of_module() -> Iterator[None]:
    """As `torch_settings`, for runs that several tests look at."""
    from examples_torch_settings import kept_settings

    with kept_settings():
        yield


@pytest.fixture
def finetune(
    torch_settings: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs the script in this process; returns the content of its ``run.json``."""
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    import finetune as script

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["finetune.py", *options])
        script.main()
        out = Path(options[options.index("--out") + 1])
        record: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return record

    return run
