"""The page on whole models: its blocks run, print what it says, and its table is the product's."""

from __future__ import annotations

import dataclasses
import functools
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors, python_blocks

from gralora import GraLoRAConfig

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "models.md"
PAGE = PATH.read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader who follows the page in an empty folder, as the only process of a group."""
    for package in ("transformers", "peft", "accelerate"):
        pytest.importorskip(package)
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("models-page")
    save_tiny_llama(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": _free_port(),
        }.items():
            patch.setenv(name, value)
        # The default backend calls a C++ compiler for most of a minute.
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        try:
            yield Reading(PATH, BLOCKS, {"path": str(folder / "base")})
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            torch._dynamo.reset()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    printed = reading.run(block)
    if block.printed is not None:
        assert printed == block.printed


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpoints_hold_what_the_page_says(reading: Reading) -> None:
    reading.run(BLOCKS[-1])
    files = {name.name for name in Path("run/checkpoint-4").iterdir()}
    table = PAGE[PAGE.index("What is in `run/checkpoint-4`") :].split("\n\n")[1]
    named = {
        name.rstrip("/")
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    unmatched = {name for name in named if not any(Path(file).match(name) for file in files)}
    assert unmatched == set()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_callback_and_checkpoint_give_the_same_adapter(reading: Reading) -> None:
    reading.run(BLOCKS[-1])
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        by_callback = Path("run/checkpoint-4/adapter", file).read_bytes()
        assert Path("run/adapter", file).read_bytes() == by_callback


def test_table_of_the_configuration_has_every_field_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^|]+)` \| [^|]+ \|$", PAGE, re.MULTILINE)
    config = GraLoRAConfig()
    fields = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    assert rows == [(name, repr(value).replace("'", '"')) for name, value in fields]


def test_names_of_peft_in_the_table_are_pefts() -> None:
    peft = pytest.importorskip("peft")
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`(\*?)|the same) \| `", PAGE, re.MULTILINE)
    own, other = (
        {field.name for field in dataclasses.fields(kind)}
        for kind in (peft.GraloraConfig, peft.LoraConfig)
    )
    assert len(rows) == len(dataclasses.fields(GraLoRAConfig)) - 1
    for field, name, star in rows:
        assert ((name or field) in own) is (not star), field
        assert not star or name in other, field


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_links_lead_to_files(link: str) -> None:
    assert (PATH.parent / link).exists()


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", PAGE))))
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE)
