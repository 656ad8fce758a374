"""The page on quantised bases: its blocks run with the libraries and print what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, python_blocks

PATH = Path(__file__).parents[2] / "docs" / "quantized.md"
BLOCKS = python_blocks(PATH.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader who follows the page in an empty folder."""
    for package in ("transformers", "accelerate", "bitsandbytes", "torchao", "peft"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("quantized-page")
    save_tiny_llama(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Reading(PATH, BLOCKS, {"path": str(folder / "base")})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    printed = reading.run(block)
    if block.printed is not None:
        assert printed == block.printed
