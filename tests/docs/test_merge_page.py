"""The page on merging: its commands run, what it says of their results holds."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors, python_blocks
from safetensors.torch import load_file

import gralora
from gralora.adapters.stored import read_adapter
from gralora.cli import main

PATH = Path(__file__).parents[2] / "docs" / "merge.md"
PAGE = PATH.read_text(encoding="utf-8")
_AS_PYTHON = re.sub(
    r"^```bash\n(.*?)^```$",
    lambda fence: f"```python\nshell({fence[1]!r})\n```",
    PAGE,
    flags=re.MULTILINE | re.DOTALL,
)
BLOCKS = python_blocks(_AS_PYTHON)


def _shell(lines: str) -> None:
    for line in lines.splitlines():
        program, *words = line.split()
        assert program == "gralora"
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        print(result.stdout, end="")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page takes for granted: a model and three adapters of it."""
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("merge-page")
    save_tiny_llama(folder / "base-model")
    for number, name in enumerate(("adapter", "style", "facts")):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(folder / "base-model", dtype=torch.float32)
        gralora.inject(model, gralora.GraLoRAConfig(r=4 + 4 * number, k=2))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gralora.save_adapter(model, folder / name)
    return folder


@pytest.fixture(scope="module")
def reading(folder: Path) -> Iterator[Reading]:
    """A reader who follows the page in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Reading(PATH, BLOCKS, {"shell": _shell})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_runs(block: Block, reading: Reading) -> None:
    reading.run(block)


def _tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model.safetensors")


@pytest.fixture
def read(reading: Reading, folder: Path) -> Path:
    """The folder once the whole page was followed."""
    for block in BLOCKS:
        reading.run(block)
    return folder


def test_several_adapters_are_the_weighted_sum(read: Path) -> None:
    base, both = _tensors(read, "base-model"), _tensors(read, "both")
    deltas = [(w, read_adapter(read / n).layers) for n, w in (("style", 0.7), ("facts", 0.5))]
    for module in deltas[0][1]:
        wanted = base[f"{module}.weight"].double()
        for weight, layers in deltas:
            wanted = wanted + weight * layers[module].delta(torch.float64)
        torch.testing.assert_close(both[f"{module}.weight"], wanted.float())


def test_a_negative_weight_takes_an_adapter_out(read: Path) -> None:
    for key, value in _tensors(read, "base-model").items():
        torch.testing.assert_close(_tensors(read, "without")[key], value)


def test_the_new_dtype_is_in_weights_and_config(read: Path) -> None:
    assert {t.dtype for t in _tensors(read, "merged-bf16").values()} == {torch.bfloat16}
    config = json.loads((read / "merged-bf16" / "config.json").read_text())
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def test_python_and_the_command_give_the_same(read: Path) -> None:
    both, again = _tensors(read, "both"), _tensors(read, "both-from-python")
    assert all(torch.equal(both[key], again[key]) for key in both)


def test_the_note_has_what_the_page_says(read: Path) -> None:
    note = json.loads((read / "merged" / "gralora_merge.json").read_text())
    assert note["adapters"][0]["weight"] == 1
    assert {"source", "result"} <= note["shards"]["model.safetensors"].keys()


def test_the_command_for_the_gpu_runs_there(cuda: torch.device, folder: Path) -> None:
    line = re.search(r"^```console\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert line is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _shell(line[1])
    assert (folder / "merged-on-gpu" / "config.json").exists()


REFUSALS = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
SOURCES = "\n".join(
    path.read_text() for path in (Path(gralora.__file__).parent / "checkpoints").glob("*.py")
)


def _words(text: str) -> str:
    """Text without line breaks and quotes, as a source and a message have in common."""
    return re.sub(r'"\s*f?"|\{[^}]*\}', "", re.sub(r"\s+", " ", text)).replace('"', "")


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_of_the_page_are_the_products(refusal: str) -> None:
    source = _words(SOURCES)
    for part in refusal.replace("got lm_head", "got ").split("…"):
        assert _words(part).strip() in source


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE))))
def test_links_lead_to_files(link: str) -> None:
    assert (PATH.parent / link).exists()


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", PAGE))))
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE)
