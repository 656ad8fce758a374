"""The training loop of finetune.py and what its options change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples_finetune_runs import tiny_options
from finetuning import determinism
from finetuning.training import learning_rate

Finetune = Callable[..., dict[str, Any]]
METHODS = ("gralora", "hybrid", "lora", "full")


@pytest.fixture
def tiny(tiny_llama: Path, essay: Path, tmp_path: Path) -> list[str]:
    return [*tiny_options(tiny_llama, essay, tmp_path / "out"), "--steps", "4"]


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, 20, 1.0) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, pytest.approx(1.0, abs=0.01)]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 0.0 < rates[-1] < 0.02


def test_a_single_step_has_the_full_learning_rate() -> None:
    assert learning_rate(0, 1, 1.0) == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_no_loss(finetune: Finetune, tiny: list[str], method: str) -> None:
    plain = finetune(*tiny, "--method", method)["computation"]
    checkpointed = finetune(*tiny, "--method", method, "--grad-checkpointing")["computation"]
    assert checkpointed["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert checkpointed["losses"][-1] != plain["losses"][0]


def test_checkpointing_recomputes(
    finetune: Finetune, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = 0
    forward = LlamaMLP.forward

    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    finetune(*tiny, "--grad-checkpointing")
    assert calls == 2 * 4 * 2  # forward and recomputation, four steps, two layers


@pytest.mark.parametrize("method", METHODS)
def test_what_trains_is_float32_in_a_bfloat16_run(
    finetune: Finetune, tiny: list[str], tmp_path: Path, method: str
) -> None:
    from safetensors.torch import load_file

    finetune(*tiny, "--method", method, "--dtype", "bfloat16")
    (path,) = (tmp_path / "out").glob("*/*.safetensors")
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_used(finetune: Finetune, tiny: list[str], method: str) -> None:
    losses = [
        finetune(*tiny, "--method", method, "--dtype", dtype)["computation"]["losses"][0]
        for dtype in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_another_seed_gives_other_losses(finetune: Finetune, tiny: list[str]) -> None:
    losses = [finetune(*tiny, "--seed", seed)["computation"]["losses"] for seed in ("0", "1")]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(["--method", "lora"], {"r": 8, "hybrid_r": 0, "gralora_k": 1}, id="lora"),
        pytest.param(
            ["--method", "hybrid"], {"r": 4, "hybrid_r": 4, "gralora_k": 2}, id="hybrid halves r"
        ),
        pytest.param(
            ["--method", "hybrid", "-k", "4", "-r", "12"],
            {"r": 4, "hybrid_r": 8, "gralora_k": 4},
            id="hybrid keeps a multiple of k",
        ),
        pytest.param(["-k", "4"], {"r": 8, "hybrid_r": 0, "gralora_k": 4}, id="k"),
        pytest.param(["-k", "auto"], {"r": 8, "hybrid_r": 0, "gralora_k": 2}, id="k auto"),
    ],
)
def test_the_saved_adapter_is_the_one_asked_for(
    finetune: Finetune,
    tiny: list[str],
    tmp_path: Path,
    options: list[str],
    expected: dict[str, int],
) -> None:
    import json

    finetune(*tiny, *options)
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in expected} == expected
    assert config["alpha"] == 2 * (expected["r"] + expected["hybrid_r"])


def test_alpha_is_passed_on(finetune: Finetune, tiny: list[str], tmp_path: Path) -> None:
    import json

    finetune(*tiny, "--alpha", "5")
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert config["alpha"] == 5


def test_a_digest_sees_one_bit() -> None:
    tensor = torch.zeros(4)
    before = determinism.digest({"a": tensor})
    tensor.view(torch.int32)[3] = 1
    assert determinism.digest({"a": tensor}) != before


def test_a_digest_does_not_depend_on_the_order() -> None:
    a, b = torch.zeros(2), torch.ones(3, dtype=torch.bfloat16)
    assert determinism.digest({"a": a, "b": b}) == determinism.digest({"b": b, "a": a})
