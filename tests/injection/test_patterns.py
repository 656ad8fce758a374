"""rank_pattern, alpha_pattern, k_pattern and k="auto": what each layer gets."""

from __future__ import annotations

import math

import pytest
from injection_models import llama
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records

Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
UP0 = "model.layers.0.mlp.up_proj"


def specs(**settings):
    model = inject(llama(), GraLoRAConfig(**settings))
    found = adapter_records(model)["default"].targets
    for name, spec in found.items():
        assert model.get_submodule(name).adapters["default"] == spec
    return found


PATTERNS = [
    pytest.param({"q_proj": 4}, id="ending"),
    pytest.param({Q0: 4, "up_proj": 16}, id="full-name"),
    pytest.param({"layers.0.*": 4}, id="expression"),
    pytest.param({".*mlp.*": 16, "q_proj": 4}, id="two-expressions"),
    pytest.param({"q_proj": 4, "self_attn.q_proj": 16}, id="first-match-wins"),
    pytest.param({"self_attn.(q|k)_proj": 4}, id="alternatives"),
    pytest.param({"layers.0.*": 4, "q_proj": 16}, id="expression-before-ending"),
    pytest.param({"q_proj": 16, "layers.0.*": 4}, id="ending-before-expression"),
    pytest.param({"self.attn.q.proj": 4, "s0mlp": 16, "....proj": 2}, id="dots-are-any-letter"),
    pytest.param({"proj": 4, "roj": 16}, id="no-match"),
]


@pytest.mark.filterwarnings("ignore:inject")
@pytest.mark.filterwarnings("ignore:The following rank_pattern")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ranks_are_those_of_peft(pattern):
    config = LoraConfig(r=8, target_modules="all-linear", rank_pattern=pattern)
    model = get_peft_model(llama(), config).get_base_model()
    expected = {n: m.r["default"] for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    ours = specs(r=8, rank_pattern=pattern)
    assert {name: spec.r for name, spec in ours.items()} == expected


@pytest.mark.filterwarnings("ignore:inject")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_scales_are_those_of_peft(pattern):
    config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", alpha_pattern=pattern)
    model = get_peft_model(llama(), config).get_base_model()
    expected = {
        n: m.scaling["default"] for n, m in model.named_modules() if isinstance(m, LoraLayer)
    }
    ours = specs(r=8, alpha=32, alpha_pattern=pattern)
    assert {name: spec.scaling for name, spec in ours.items()} == expected


def test_full_name_wins_over_an_earlier_match():
    found = specs(r=8, rank_pattern={"q_proj": 4, Q0: 16})
    assert (found[Q0].r, found[Q1].r) == (16, 4)


def test_grids_by_layer():
    found = specs(r=8, k=2, k_pattern={"q_proj": (4, 2), UP0: 1})
    grids = {name: (found[name].k_out, found[name].k_in) for name in (Q0, UP0)}
    assert grids == {Q0: (4, 2), UP0: (1, 1)}


def test_automatic_grid_follows_the_rank_of_each_layer():
    found = specs(r=8, k="auto", rank_pattern={"q_proj": 64, "up_proj": 9})
    assert (found[Q0].k_in, found[UP0].k_in) == (4, 1)
    assert found["model.layers.0.self_attn.k_proj"].k_in == 2


def test_alpha_is_twice_the_rank_of_each_layer():
    found = specs(r=8, rank_pattern={"q_proj": 4})
    assert (found[Q0].alpha, found[UP0].alpha) == (8, 16)


def test_alpha_pattern_beside_the_default():
    found = specs(r=8, alpha_pattern={"q_proj": 3})
    assert (found[Q0].scaling, found[UP0].scaling) == (3 / 8, 2)


def test_rslora_scales_by_the_root_of_each_rank():
    found = specs(r=8, alpha=6, hybrid_r=1, use_rslora=True, rank_pattern={"q_proj": 4})
    assert found[Q0].scaling == pytest.approx(6 / math.sqrt(5))
    assert found[UP0].scaling == pytest.approx(6 / math.sqrt(9))
