"""The text that finetune.py trains on, and the text that it does not."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finetuning import text
from finetuning.errors import FinetuneError
from torch import Tensor


def _characters(content: str) -> SimpleNamespace:
    """A tokenizer: one token for each character."""
    return SimpleNamespace(input_ids=[ord(character) for character in content])


def _corpus(train: Tensor, held_out: Tensor) -> text.Corpus:
    return text.Corpus(train=train, held_out=held_out, prompt=train[None, :1], name="")


def test_the_last_tenth_of_all_files_is_held_out(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text("a" * 69, encoding="utf-8")
    paths[1].write_text("b" * 30, encoding="utf-8")
    corpus = text.text_files(_characters, paths)
    whole = "a" * 69 + "\n" + "b" * 30
    assert "".join(map(chr, corpus.train)) == whole[:90]
    assert "".join(map(chr, corpus.held_out)) == whole[90:]


def test_no_module_is_both_trained_on_and_held_out() -> None:
    assert set(text.TRAIN_MODULES).isdisjoint(text.HELD_OUT_MODULES)


def test_no_module_is_trained_on_twice() -> None:
    assert len(set(text.TRAIN_MODULES)) == len(text.TRAIN_MODULES)


def _lines(content: str) -> SimpleNamespace:
    """A tokenizer: one token for each line."""
    return SimpleNamespace(input_ids=[_line(line) for line in content.splitlines()])


def _line(content: str) -> int:
    return zlib.crc32(content.encode())


def test_the_standard_library_is_found() -> None:
    corpus = text.standard_library(_lines)
    assert _line("class TarFile(object):") in corpus.held_out
    assert _line("class ArgumentParser(_AttributeHolder, _ActionsContainer):") in corpus.train


def test_no_class_of_the_held_out_modules_is_trained_on() -> None:
    assert _line("class TarFile(object):") not in text.standard_library(_lines).train


def test_a_library_without_sources_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "get_path", lambda _: str(tmp_path))
    with pytest.raises(FinetuneError, match="module argparse is not on this machine"):
        text.standard_library(_characters)


def test_held_out_windows_are_spread_and_disjoint() -> None:
    corpus = _corpus(torch.arange(8), torch.arange(100, 150))
    windows = text.held_out_windows(corpus, tokens=15, length=5)
    assert windows[:, 0].tolist() == [100, 115, 130]


def test_a_window_longer_than_the_share_is_still_measured() -> None:
    corpus = _corpus(torch.arange(8), torch.arange(20))
    assert text.held_out_windows(corpus, tokens=4, length=10).tolist() == [list(range(10))]


def test_each_window_is_seen_once_before_any_is_seen_again() -> None:
    corpus = _corpus(torch.arange(40), torch.arange(8))
    batches = itertools.islice(text.shuffled_batches(corpus, 3, length=4, seed=1), 10)
    starts = torch.cat([batch[:, 0] for batch in batches])
    for epoch in starts.split(10):
        assert epoch.sort().values.tolist() == list(range(0, 40, 4))


@pytest.mark.parametrize(("seed", "equal"), [(5, True), (6, False)])
def test_the_order_depends_on_the_seed_alone(seed: int, equal: bool) -> None:
    corpus = _corpus(torch.arange(400), torch.arange(8))
    first = next(text.shuffled_batches(corpus, 50, length=4, seed=5))
    torch.manual_seed(99)
    second = next(text.shuffled_batches(corpus, 50, length=4, seed=seed))
    assert torch.equal(first, second) is equal
