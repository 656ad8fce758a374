"""The page on mixture-of-experts models: its blocks run and print what it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docs_pages import Block, Reading, anchors
from docs_readers import check_block, open_page

PAGE = open_page("experts")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in an empty folder."""
    pytest.importorskip("transformers.integrations.moe", reason="needs transformers 5")
    pytest.importorskip("peft")
    with PAGE.read_in(tmp_path_factory.mktemp("experts-page")) as reader:
        yield reader


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
@pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load this adapter")
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


@pytest.mark.parametrize("link", PAGE.links)
def test_links_lead_to_files(link: str) -> None:
    assert (PAGE.path.parent / link).exists()


def test_inner_links_lead_to_headings() -> None:
    assert set(PAGE.inner_links) <= anchors(PAGE.text)
