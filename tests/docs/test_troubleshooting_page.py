"""The page on troubles: it quotes the product word for word, and its blocks run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from docs_pages import Block, Reading, anchors
from docs_quotes import is_said
from docs_readers import check_block, open_page

PAGE = open_page("troubleshooting")
QUOTES = [
    quote
    for cell in re.findall(r"^\| (`.+?`)(?: \(a warning\))? \|", PAGE.text, re.MULTILINE)
    for quote in re.findall(r"`([^`]+)`", cell)
]


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in an empty folder."""
    pytest.importorskip("peft")
    with PAGE.read_in(tmp_path_factory.mktemp("troubleshooting-page")) as reading:
        yield reading


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def test_every_row_of_the_tables_has_a_quote() -> None:
    rows = [row for row in PAGE.text.splitlines() if row.startswith("| ") and "---" not in row]
    assert len(QUOTES) == len(rows) - rows.count("| message | what to do |") - rows.count(
        "| message | what it means | what to do |"
    )


@pytest.mark.parametrize("quote", QUOTES)
def test_the_product_says_so_word_for_word(quote: str) -> None:
    assert is_said(quote)


def test_a_sentence_that_nobody_says_is_noticed() -> None:
    assert not is_said("the adapter must be green")
    assert not is_said("a target must be a … of cheese")


LINKS = sorted(set(re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", PAGE.text)))


@pytest.mark.parametrize(("link", "anchor"), LINKS, ids=[f"{a}#{b}" for a, b in LINKS])
def test_links_lead_to_headings_of_pages(link: str, anchor: str) -> None:
    target = PAGE.path.parent / link
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize("anchor", PAGE.inner_links)
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE.text)
