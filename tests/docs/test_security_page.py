"""The page on security: its blocks print what it says, its limits and claims are the product's."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors, python_blocks
from safetensors.torch import load_file, save_file

import gralora
from gralora.storage import checked_file

PATH = Path(__file__).parents[2] / "docs" / "security.md"
PAGE = PATH.read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)
WORDS = " ".join(PAGE.split())
MODULES = sorted(Path(gralora.__file__).parent.rglob("*.py"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in a folder with a model of several shards and two adapters, one with a NaN."""
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("security-page")
    save_tiny_llama(folder / "whole")
    model = AutoModelForCausalLM.from_pretrained(folder / "whole")
    model.save_pretrained(folder / "base-model", max_shard_size="100KB")
    config = gralora.GraLoRAConfig(r=8, target_modules=["q_proj", "v_proj"])
    gralora.inject(model, config)
    for name in ("adapter", "adapter-with-nan"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gralora.save_adapter(model, folder / name)
    path = folder / "adapter-with-nan" / "adapter_model.safetensors"
    values = load_file(path)
    values["base_model.model.model.layers.0.self_attn.q_proj.gralora_A"][0, 0, 0] = float("nan")
    note = gralora.storage.checked_file.read_header(path.open("rb"), path).metadata
    save_file(values, path, metadata=dict(note))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Reading(PATH, BLOCKS, {})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    assert reading.run(block) == block.printed


def test_limits_are_the_products() -> None:
    assert f"at most {checked_file.MAX_HEADER_BYTES:,} bytes" in WORDS
    assert f"at most {checked_file.MAX_JSON_BYTES // 2**20} MiB" in WORDS
    assert f"values nested at most {checked_file._MAX_NESTING} deep" in WORDS
    assert f"at most {checked_file._MAX_DIMENSIONS} sizes" in WORDS


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "yaml.load"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_reads_pickles_or_runs_text(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS


FUZZ = PATH.parents[1] / "tests" / "security" / "test_fuzz.py"


def _constant(path: Path, name: str) -> str:
    (found,) = re.findall(rf"^{name} = (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return str(found)


def test_the_number_of_random_files_is_what_the_page_says() -> None:
    assert f"tries {_constant(FUZZ, 'USUAL')} inputs of each entry" in WORDS
    assert f"at most {float(_constant(FUZZ, 'SECONDS')):.0f} seconds each" in WORDS


def _entries() -> list[str]:
    source = (FUZZ.parent / "support" / "security_entries.py").read_text(encoding="utf-8")
    return re.findall(r'^    "([\w-]+)": Entry\(', source, re.MULTILINE)


def test_the_record_is_of_every_entry_and_what_the_page_says() -> None:
    (link,) = re.findall(r"\(\.\./(\S+fuzz_\d+\.json)\)", PAGE)
    runs = json.loads((PATH.parents[1] / link).read_text(encoding="utf-8"))["runs"]
    assert [run["entry"] for run in runs] == _entries()
    (each,) = {run["inputs"] for run in runs}
    refused, accepted = (sum(run[name] for run in runs) for name in ("refused", "accepted"))
    assert refused + accepted == each * len(runs)
    assert (
        f"of {each:,} inputs of each entry: of {each * len(runs):,}, {refused:,} were refused and "
        f"{accepted:,} accepted"
    ) in WORDS


@pytest.mark.parametrize("name", ["GRALORA_FUZZ", "GRALORA_FUZZ_RECORD"])
def test_the_variables_of_the_page_are_those_of_the_tests(name: str) -> None:
    assert f"`{name}`" in PAGE
    assert f'os.environ.get("{name}"' in FUZZ.read_text(encoding="utf-8")


def test_the_table_has_every_entry_that_is_fuzzed() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| 10,000 \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == _entries()
    for _, *counts in rows:
        assert sum(int(count.replace(",", "")) for count in counts) == 10_000


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", PAGE))))
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE)
