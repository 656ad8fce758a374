"""finetune.py as a program: what each method prints, writes and repeats."""

from __future__ import annotations

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from examples_finetune_runs import Run, finish, finish_in_turn, held_out_loss, tiny_options

import gralora

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

METHODS = ("gralora", "hybrid", "lora", "full")
ADAPTERS = METHODS[:3]


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, essay: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One run of each method; ``again`` is that of ``gralora`` once more, in another process."""
    methods = {method: method for method in METHODS} | {"again": "gralora"}
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in methods}
    options = {
        name: [*tiny_options(tiny_llama, essay, folder), "--method", methods[name]]
        for name, folder in folders.items()
    }
    with ThreadPoolExecutor(max_workers=2) as side_by_side:
        others = side_by_side.submit(
            finish_in_turn, {folders[name]: options[name] for name in ("hybrid", "lora", "full")}
        )
        alone = {
            name: side_by_side.submit(finish, folders[name], *options[name])
            for name in ("gralora", "again")
        }
    return {run.folder.name: run for run in others.result().values()} | {
        name: run.result() for name, run in alone.items()
    }


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _last_held_out_loss(run: Run) -> float:
    loss: float = list(run.record["computation"]["held_out_losses"].values())[-1]
    return loss


@pytest.mark.parametrize("method", METHODS)
def test_the_held_out_loss_falls(runs: dict[str, Run], method: str) -> None:
    losses = list(runs[method].record["computation"]["held_out_losses"].values())
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("method", METHODS)
def test_the_recorded_loss_before_is_the_base_models(
    runs: dict[str, Run], tiny_llama: Path, essay: Path, method: str
) -> None:
    recorded = runs[method].record["computation"]["held_out_losses"]["0"]
    assert recorded == pytest.approx(held_out_loss(_load(tiny_llama), tiny_llama, essay), rel=1e-5)


@pytest.mark.parametrize("method", ADAPTERS)
def test_peft_loads_the_adapter_and_has_the_recorded_loss(
    runs: dict[str, Run], tiny_llama: Path, essay: Path, method: str
) -> None:
    peft = pytest.importorskip("peft")
    run = runs[method]
    with warnings.catch_warnings():
        # A field that PEFT does not know would be dropped with a warning, and the result be wrong.
        warnings.filterwarnings("error", message=".*[Uu]nexpected.*")
        model = peft.PeftModel.from_pretrained(_load(tiny_llama), run.folder / "adapter")
    loss = held_out_loss(model, tiny_llama, essay)
    assert loss == pytest.approx(_last_held_out_loss(run), rel=1e-5)


@pytest.mark.parametrize("method", ADAPTERS)
def test_gralora_loads_the_adapter_and_has_the_recorded_loss(
    runs: dict[str, Run], tiny_llama: Path, essay: Path, method: str
) -> None:
    run = runs[method]
    model = gralora.load_adapter(_load(tiny_llama), run.folder / "adapter")
    loss = held_out_loss(model, tiny_llama, essay)
    assert loss == pytest.approx(_last_held_out_loss(run), rel=1e-5)


def test_transformers_loads_the_full_model_and_has_the_recorded_loss(
    runs: dict[str, Run], essay: Path
) -> None:
    folder = runs["full"].folder / "model"
    loss = held_out_loss(_load(folder), folder, essay)
    assert loss == pytest.approx(_last_held_out_loss(runs["full"]), rel=1e-5)


def test_adapters_have_equally_many_parameters(runs: dict[str, Run]) -> None:
    counts = {runs[m].record["computation"]["trainable_parameters"] for m in ADAPTERS}
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    assert counts == {2 * sum(8 * (inputs + outputs) for inputs, outputs in shapes)}


def test_full_trains_every_parameter(runs: dict[str, Run]) -> None:
    computed = runs["full"].record["computation"]
    assert computed["trainable_parameters"] == computed["parameters"]


@pytest.mark.parametrize("method", METHODS)
def test_the_record_lists_the_files_that_are_there(runs: dict[str, Run], method: str) -> None:
    folder = runs[method].folder
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(runs[method].record["files"]) == present


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_curve_is_a_picture(runs: dict[str, Run], method: str) -> None:
    from matplotlib.image import imread

    picture = imread(runs[method].folder / "loss.png")
    assert picture.std() > 0.05


def test_the_record_has_a_loss_for_each_step(runs: dict[str, Run]) -> None:
    assert len(runs["gralora"].record["computation"]["losses"]) == 30


@pytest.mark.parametrize("method", METHODS)
def test_the_record_names_the_options(runs: dict[str, Run], method: str) -> None:
    options = runs[method].record["options"]
    assert {key: options[key] for key in ("method", "r", "k", "batch", "seed")} == {
        "method": method,
        "r": 8,
        "k": 2,
        "batch": 4,
        "seed": 0,
    }


@pytest.mark.parametrize("method", ADAPTERS)
def test_merged_logits_differ_by_rounding_alone(runs: dict[str, Run], method: str) -> None:
    assert runs[method].record["computation"]["merged_logits"]["relative"] < 1e-5


def test_the_terminal_shows_the_results(runs: dict[str, Run]) -> None:
    cells = (line.strip("│ \n").split("│") for line in runs["gralora"].stdout.splitlines())
    names = {row[0].strip() for row in cells if len(row) == 2}
    assert names == {
        "held-out loss before",
        "held-out loss after",
        "trainable parameters",
        "training time",
        "tokens/s",
        "time of the whole run",
        "peak memory",
        "logits, merged - adapted",
    }


def test_the_terminal_shows_both_continuations(runs: dict[str, Run]) -> None:
    titles = re.findall(r"╭─ (\w+) ─", runs["gralora"].stdout)
    assert titles == ["before", "after"]


def test_the_same_seed_computes_the_same_bits(runs: dict[str, Run]) -> None:
    assert runs["again"].record["computation"] == runs["gralora"].record["computation"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_the_same_seed_writes_the_same_file(runs: dict[str, Run], name: str) -> None:
    first = runs["gralora"].folder / "adapter" / name
    assert (runs["again"].folder / "adapter" / name).read_bytes() == first.read_bytes()
