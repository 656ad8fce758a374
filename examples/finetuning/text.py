"""The text to learn from, as windows of token ids: some to train on, some never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from finetuning.errors import FinetuneError

# Single files in every version of Python from 3.11 on.
TRAIN_MODULES = (
    *("argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib"),
    *("copy", "csv", "dataclasses", "difflib", "dis", "doctest", "enum", "fractions", "ftplib"),
    *("functools", "gettext", "glob", "gzip", "inspect", "locale", "mailbox", "mimetypes"),
    *("netrc", "optparse", "os", "pdb", "pickle", "pickletools", "platform", "plistlib"),
    *("pprint", "queue", "random", "shutil", "smtplib", "socket", "socketserver", "statistics"),
    *("subprocess", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback"),
    *("typing", "uuid"),
)
HELD_OUT_MODULES = ("fileinput", "imaplib", "selectors", "shlex", "tarfile", "trace")
PYTHON_PROMPT = '''def read_lines(path, encoding="utf-8"):
    """Return the lines of a text file as a list of strings.
'''

HELD_OUT_SHARE = 0.1
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Corpus:
    """Token ids, one long row each, and what to continue before and after training.

    Attributes:
        train: int64 ``[tokens]``.
        held_out: int64 ``[tokens]``; no part of it is in `train`.
        prompt: token ids of a fixed beginning, int64 ``[1, tokens]``.
        name: in few words, for a title.

    """

    train: Tensor
    held_out: Tensor
    prompt: Tensor
    name: str


def load(tokenizer: Any, paths: Sequence[Path], length: int) -> Corpus:
    """The files, or without any Python's own modules; both parts fill windows of `length` tokens.

    Raises:
        FinetuneError: a file cannot be read, or there is too little text.

    """
    corpus = text_files(tokenizer, paths) if paths else standard_library(tokenizer)
    check_length(corpus, length)
    return corpus


def standard_library(tokenizer: Any) -> Corpus:
    """Python's own modules: :data:`TRAIN_MODULES` to learn, :data:`HELD_OUT_MODULES` to judge.

    Raises:
        FinetuneError: this Python comes without the sources of its library.

    """
    return Corpus(
        train=_tokens(tokenizer, "".join(map(module_source, TRAIN_MODULES))),
        held_out=_tokens(tokenizer, "".join(map(module_source, HELD_OUT_MODULES))),
        prompt=_tokens(tokenizer, PYTHON_PROMPT)[None],
        name="Python's standard library",
    )


def text_files(tokenizer: Any, paths: Sequence[Path]) -> Corpus:
    """The files one after the other; the last tenth of all tokens is held out.

    The prompt is the beginning of the held-out part.

    Raises:
        FinetuneError: a file that is missing, no UTF-8 text, or too little text in all.

    """
    tokens = _tokens(tokenizer, "\n".join(map(_read, paths)))
    boundary = len(tokens) - int(len(tokens) * HELD_OUT_SHARE)
    held_out = tokens[boundary:]
    return Corpus(
        train=tokens[:boundary],
        held_out=held_out,
        prompt=held_out[None, :PROMPT_TOKENS],
        name=shorten(", ".join(path.name for path in paths), 50, placeholder=" ..."),
    )


def check_length(corpus: Corpus, length: int) -> None:
    """Raise FinetuneError unless both parts hold at least one window of `length` tokens."""
    for part, tokens in (("train on", corpus.train), ("hold out", corpus.held_out)):
        if len(tokens) < length:
            raise FinetuneError(
                f"--text: the text to {part} must fill a window of --seq-len {length} tokens, "
                f"got {len(tokens)} tokens (give more text or a smaller --seq-len)"
            )


def held_out_windows(corpus: Corpus, tokens: int, length: int) -> Tensor:
    """Return int64 ``[windows, length]``, at most `tokens` in all, spread over the held-out text.

    One window there always is, also a longer one.
    """
    windows = corpus.held_out.unfold(0, length, length)
    count = min(max(1, tokens // length), len(windows))
    return windows[torch.arange(count) * len(windows) // count].clone()


def shuffled_batches(corpus: Corpus, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """Yield int64 ``[batch, length]`` without end: every window once, then again in a new order.

    The order depends on `seed` alone.
    """
    windows = corpus.train.unfold(0, length, length)
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < batch:
            queue = torch.cat([queue, torch.randperm(len(windows), generator=generator)])
        yield windows[queue[:batch]]
        queue = queue[batch:]


def module_source(name: str) -> str:
    """Return the source of a module of the standard library.

    Raises:
        FinetuneError: this Python comes without it.

    """
    path = Path(get_path("stdlib"), f"{name}.py")
    if not path.is_file():
        raise FinetuneError(
            f"the source of the standard library's module {name} is not on this machine; "
            "give text of your own with --text"
        )
    return path.read_text(encoding="utf-8") + "\n"


def _tokens(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor(tokenizer(text).input_ids, dtype=torch.int64)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FinetuneError(f"--text: {path} is no UTF-8 text: {error}") from error
    except OSError as error:
        raise FinetuneError(f"--text: cannot read {path}: {error.strerror}") from error
