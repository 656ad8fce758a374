"""The page on PEFT: its blocks run and print what it says, its tables are true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors, python_blocks

pytest.importorskip("peft")
pytest.importorskip("transformers")

from peft import GraloraConfig, get_peft_model

PATH = Path(__file__).parents[2] / "docs" / "peft.md"
PAGE = PATH.read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader who follows the page in an empty folder."""
    folder = tmp_path_factory.mktemp("peft-page")
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


def test_example_of_the_readme_accelerates_a_model() -> None:
    from gralora.integrations.peft import report

    readme = (PATH.parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in python_blocks(readme) if "gralora.integrations.peft" in b.code)
    model, _ = _peft_layer()
    exec(block.code, {"peft_model": model})
    assert report(model).counts() == {"fused": 1}


def test_table_of_ways_has_all_of_them() -> None:
    from gralora.integrations.peft.plan import Way

    table = PAGE[PAGE.index("| way | what the forward does |") :].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(get_args(Way))


def _counts(number: str) -> dict[str, dict[str, int]]:
    path = PATH.parents[1] / "tests" / "peft_suite" / "results" / f"peft_{number}.json"
    files: dict[str, dict[str, int]] = json.loads(path.read_text(encoding="utf-8"))["files"]
    return files


def _row(name: str) -> list[int]:
    (found,) = re.findall(rf"^\| {re.escape(name)} \| (.+) \|$", PAGE, re.MULTILINE)
    return [int(cell.replace(",", "")) for cell in found.split(" | ")]


COLUMNS = (
    *("passed in both", "failed in both", "skipped in both", "needs the network"),
    *("passed only without", "ran fused", "calls"),
)


def test_table_of_pefts_tests_is_that_of_the_recorded_run() -> None:
    files = _counts("0.21.2")
    for name in re.findall(r"^\| `(test_\w+\.py)` \|", PAGE, re.MULTILINE):
        assert _row(f"`{name}`") == [files[name][column] for column in COLUMNS], name
    assert _row("all") == [sum(row[column] for row in files.values()) for column in COLUMNS]


def test_sentence_on_an_older_peft_is_that_of_the_recorded_run() -> None:
    files = _counts("0.19.1").values()
    passed, fused, faults = (
        sum(row[column] for row in files)
        for column in ("passed in both", "ran fused", "passed only without")
    )
    assert faults == 0
    assert f"{passed} tests pass both ways, {fused} of them through" in " ".join(PAGE.split())


def _peft_layer(hybrid_r: int = 0, dropout: float = 0.0) -> tuple[torch.nn.Module, Any]:
    """PEFT's own layer, not accelerated, in a model that is nothing but its base layer."""
    torch.manual_seed(0)
    config = GraloraConfig(
        r=4,
        gralora_k=2,
        alpha=8,
        hybrid_r=hybrid_r,
        gralora_dropout=dropout,
        target_modules=["0"],
        init_weights=False,
    )
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
    return model, model.base_model.model[0]


@pytest.mark.parametrize("shape", [(8,), (2, 2, 3, 8), (0, 8), (2, 0, 8)], ids=str)
def test_pefts_layer_fails_for_shapes_as_the_page_says(shape: tuple[int, ...]) -> None:
    model, _ = _peft_layer()
    with pytest.raises((ValueError, RuntimeError)):
        model(torch.randn(shape))


def test_pefts_layer_ignores_names_of_adapters_as_the_page_says() -> None:
    model, _ = _peft_layer()
    model.eval()
    x = torch.randn(2, 3, 8)
    assert torch.equal(model(x, adapter_names=["default", "__base__"]), model(x))


def test_pefts_layer_leaves_the_dtype_of_autocast_as_the_page_says() -> None:
    model, layer = _peft_layer()
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 3, 8)
        assert layer.base_layer(x).dtype == torch.bfloat16
        assert model(x).dtype == torch.float32


def test_pefts_layer_overwrites_the_base_output_as_the_page_says() -> None:
    model, layer = _peft_layer()
    layer.base_layer.register_forward_hook(lambda module, args, output: output.tanh())
    loss = model(torch.randn(2, 3, 8, requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_pefts_layer_draws_two_masks_as_the_page_says() -> None:
    model, layer = _peft_layer(hybrid_r=2, dropout=0.5)
    masks = []
    layer.gralora_dropout["default"].register_forward_hook(
        lambda module, args, output: masks.append(output != 0)
    )
    model(torch.ones(2, 3, 8))
    assert len(masks) == 2
    assert not torch.equal(masks[0], masks[1])


def test_peft_leaves_a_merge_into_a_quantised_base_half_done_as_the_page_says() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    base = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    quantization.quantize_(base[1], quantization.Int8WeightOnlyConfig())
    model = get_peft_model(base, GraloraConfig(r=4, gralora_k=2, target_modules=["0", "1"]))
    with pytest.raises(NotImplementedError):
        model.merge_adapter()
    assert [layer.merged for layer in model.base_model.model] == [True, False]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^):]+)\)", PAGE))))
def test_links_lead_to_files_and_headings(link: str) -> None:
    name, _, anchor = link.partition("#")
    target = PATH.parent / name if name else PATH
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
