"""The page on training frameworks: its blocks run, what it says holds, its links lead on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from docs_pages import Block, Reading, anchors, python_blocks

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "frameworks.md"
PAGE = PATH.read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)
PACKAGES = ("accelerate", "datasets", "diffusers", "peft", "transformers", "trl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with its tokenizer, that of the examples' tests."""
    for package in PACKAGES:
        pytest.importorskip(package, reason=f"{package} is not installed")
    for folder in (ROOT / "examples", ROOT / "tests" / "examples" / "support"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    from examples_tiny_llama import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("frameworks-page") / "base")


@pytest.fixture(scope="module")
def reading(base: Path) -> Iterator[Reading]:
    """A reader who follows the page in an empty folder, on the CPU."""
    from transformers import logging

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shown = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base.parent)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield Reading(PATH, BLOCKS, {"path": str(base)})
    logging.set_verbosity(shown)
    torch.set_num_threads(threads)


def _own_lines(printed: str) -> str:
    """What is printed by the page's own statements; trainers print a dictionary for each log."""
    lines = printed.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"\{'(loss|train_runtime)'", line))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    printed = reading.run(block)
    if block.printed is not None:
        assert _own_lines(printed) == block.printed


def test_trl_trains_no_adapter_of_the_head_as_the_page_says(
    base: Path, reading: Reading, tmp_path: Path
) -> None:
    pytest.importorskip("trl", minversion="1.16")
    from datasets import Dataset
    from peft import GraloraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    import gralora

    def trainer(model: torch.nn.Module | str, **more: object) -> SFTTrainer:
        arguments = SFTConfig(str(tmp_path), max_steps=1, bf16=False, save_strategy="no")
        return SFTTrainer(model, arguments, train_dataset=rows, **more)

    rows = Dataset.from_list([{"text": "a b c d e f g"}] * 8)
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        trainer(str(base), peft_config=GraloraConfig(r=4, gralora_k=1, target_modules=["lm_head"]))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    config = gralora.GraLoRAConfig(r=4, k=1, target_modules=["q_proj", "lm_head"])
    trainer(gralora.inject(model, config)).train()
    state = gralora.adapter_state_dict(model)
    trained = {name for name, tensor in state.items() if name.endswith("_B") and tensor.any()}
    assert trained == {name for name in state if name.endswith("q_proj.gralora_B")}


def test_diffusers_refuses_to_read_a_gralora_as_the_page_says(
    reading: Reading, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel
    from peft import GraloraConfig

    for block in BLOCKS:
        reading.run(block)
    unet = UNet2DConditionModel.from_pretrained("unet")
    unet.add_adapter(GraloraConfig(r=4, gralora_k=2, target_modules=["to_q"]))
    unet.save_lora_adapter(tmp_path)
    fresh = UNet2DConditionModel.from_pretrained("unet")
    name = "pytorch_lora_weights.safetensors"
    with pytest.raises((KeyError, TypeError)):
        fresh.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, weight_name=name)


LINKS = sorted(set(re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGE)))


@pytest.mark.parametrize(("link", "anchor"), LINKS, ids=[f"{a}#{b}" for a, b in LINKS])
def test_links_lead_to_headings_of_pages(link: str, anchor: str) -> None:
    target = PATH.parent / link if link else PATH
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))


def test_versions_are_not_older_than_what_an_installation_takes() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = dict(re.findall(r"(TRL|diffusers) (\d+\.\d+)", PAGE[PAGE.index("## Versions") :]))
    assert set(named) == {"TRL", "diffusers"}
    for name, version in named.items():
        (least,) = set(re.findall(rf'"{name.lower()}>=([\d.]+)"', project))
        assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))
