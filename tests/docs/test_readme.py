"""README.md: its Python blocks run, and its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from docs_models import save_tiny_llama
from docs_pages import Block, Reading, python_blocks

PATH = Path(__file__).parents[2] / "README.md"
PAGE = PATH.read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader whose Hub has one model, which is tiny, and who has a model of PEFT's."""
    import peft
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("readme")
    save_tiny_llama(folder / "base")
    load = AutoModelForCausalLM.from_pretrained
    model = peft.get_peft_model(load(folder / "base"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(AutoModelForCausalLM, "from_pretrained", lambda _: load(folder / "base"))
        yield Reading(PATH, BLOCKS, {"peft_model": model})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_runs(block: Block, reading: Reading) -> None:
    assert reading.run(block) == ""


LINKS = sorted(set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE)))


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_to_files(link: str) -> None:
    assert (PATH.parent / link).exists()
