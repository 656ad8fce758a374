"""The page on the kernels: its command and its Python block run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docs_pages import Block, Reading
from docs_readers import check_block, open_page

PAGE = open_page("kernels")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in an empty folder."""
    with PAGE.read_in(tmp_path_factory.mktemp("kernels-page")) as reading:
        yield reading


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def test_the_command_says_which_steps_take_kernels(reading: Reading) -> None:
    command = next(block for block in PAGE.blocks if "--explain" in block.code)
    printed = reading.run(command)
    assert "dA, dB" in printed
    assert "kernel" in printed
