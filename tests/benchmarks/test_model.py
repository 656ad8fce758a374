"""The decoders of the model suite: their shapes, their shared weights, and what it reports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_variants
import pytest
import run
import torch
from torch import nn

pytest.importorskip("transformers")

from decoders import DECODERS, TARGETS, build_decoder, share_weights

from gralora.bench.shapes import MODELS

CPU = torch.device("cpu")
SMALL = ["model", "--device", "cpu", "--tokens", "8", "--sequence", "4", "--rounds", "9"]


def _projections(decoder: nn.Module) -> dict[str, nn.Linear]:
    return {
        name.rpartition(".")[2]: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_has_the_projections_of_the_preset(name: str) -> None:
    decoder = build_decoder(name, 1, torch.float32, torch.device("meta"))
    found = _projections(decoder)
    assert set(found) == set(TARGETS)
    for shape in MODELS[name]:
        for projection in shape.name.split(", "):
            assert found[projection].in_features == shape.in_features
            assert found[projection].out_features == shape.out_features


@pytest.mark.parametrize(
    ("name", "biased"),
    [("qwen2.5-7b", {"q_proj", "k_proj", "v_proj"}), ("llama-3.1-8b", set())],
    ids=["qwen", "llama"],
)
def test_biases_are_those_of_the_family(name: str, biased: set[str]) -> None:
    decoder = build_decoder(name, 1, torch.float32, torch.device("meta"))
    found = _projections(decoder)
    assert {name for name, linear in found.items() if linear.bias is not None} == biased


def test_decoder_has_so_many_layers() -> None:
    decoder = build_decoder("smollm2-135m", 3, torch.bfloat16, torch.device("meta"))
    assert sum(name.endswith("q_proj") for name, _ in decoder.named_modules()) == 3
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}


def test_copies_hold_the_same_memory() -> None:
    decoder = build_decoder("smollm2-135m", 1, torch.float32, CPU)
    copied = share_weights(decoder)
    assert copied is not decoder
    pairs = zip(decoder.parameters(), copied.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)


def test_adapting_a_copy_leaves_the_base_alone() -> None:
    decoder = build_decoder("smollm2-135m", 1, torch.float32, CPU)
    before = {name: id(module) for name, module in decoder.named_modules()}
    model_variants.build("gralora", decoder, 8, 2, torch.float32)
    assert {name: id(module) for name, module in decoder.named_modules()} == before


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short run of three variants with and without gradient checkpointing."""
    path = tmp_path_factory.mktemp("results") / "model.json"
    options = ["--rk", "8:2", "--variants", "frozen,gralora,gralora_fp32", "--checkpointed", "8"]
    assert run.main([*SMALL, *options, "--dtype", "bf16", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_variant_is_timed_with_and_without_checkpointing(record: dict[str, Any]) -> None:
    found = {(t["variant"], t["case"]["checkpointing"]) for t in record["timings"]}
    names = ("frozen", "gralora", "gralora_fp32")
    assert found == {(name, wanted) for name in names for wanted in (False, True)}


def test_tokens_a_second_come_from_the_median(record: dict[str, Any]) -> None:
    timing = record["timings"][0]
    assert timing["tokens_per_s"] == pytest.approx(8 / timing["seconds"]["median"])


def test_adapter_saves_the_inputs_of_its_layers_and_latents(record: dict[str, Any]) -> None:
    found = {
        m["variant"]: m["activation_bytes"]
        for m in record["memory"]
        if not m["case"]["checkpointing"]
    }
    # Four distinct inputs, 576 wide but for the last, in bf16, and H of seven layers.
    inputs = 8 * (3 * 576 + 1536) * 2
    latents = 7 * 2 * 8 * 8 * 2
    assert found["gralora"] - found["frozen"] <= inputs + latents


def test_variants_agree(record: dict[str, Any]) -> None:
    errors = {a["variant"]: a["errors"]["hidden"] for a in record["agreement"]}
    assert set(errors) == {"gralora", "gralora_fp32"}
    assert errors["gralora_fp32"] < 0.02


def test_variant_that_disagrees_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = model_variants.BUILDERS["gralora"]

    def wrong(*arguments: Any) -> model_variants.ModelVariant:
        built = builder(*arguments)
        for parameter in built.parameters:
            parameter.data *= 4
        return built

    monkeypatch.setitem(model_variants.BUILDERS, "gralora_fp32", wrong)
    path = tmp_path / "model.json"
    options = ["--rk", "8:2", "--variants", "gralora,gralora_fp32", "--dtype", "bf16"]
    assert run.main([*SMALL, *options, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert {t["variant"] for t in record["timings"]} == {"gralora"}
    assert "disagrees with the others" in record["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rk", "10:5"], "rk: k must divide 576x576 (q_proj, o_proj), got k=5"),
        (["--tokens", "7"], "tokens: a multiple of the sequence, got 7 in sequences of 4"),
        (["--layers", "0"], "layers: at least 1, got 0"),
        (["--variants", "frozen,x"], "got x"),
    ],
    ids=["grid", "sequence", "layers", "variants"],
)
def test_wrong_option_is_explained(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal([*SMALL, *arguments])
