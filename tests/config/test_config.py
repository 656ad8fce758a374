"""GraLoRAConfig: one form for every value, and every wrong value refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
from peft import TaskType

from gralora.config import GraLoRAConfig


def test_defaults_are_those_of_the_layer_on_all_linear_layers():
    config = GraLoRAConfig()
    assert (config.r, config.k, config.alpha, config.hybrid_r) == (32, 2, None, 0)
    assert config.target_modules == "all-linear"
    assert config.bias == "none"


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GraLoRAConfig().r = 8


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        pytest.param("target_modules", ["b", "a"], ("b", "a"), id="list"),
        pytest.param("target_modules", {"b", "a"}, ("a", "b"), id="set"),
        pytest.param("target_modules", ["a", "a"], ("a",), id="twice"),
        pytest.param("target_modules", "a|b", "a|b", id="expression"),
        pytest.param("exclude_modules", ["a"], ("a",), id="exclude"),
        pytest.param("modules_to_save", ["a"], ("a",), id="save"),
        pytest.param("layers_pattern", ["h"], ("h",), id="layers_pattern"),
        pytest.param("layers_to_transform", [3, 1, 3], (1, 3), id="indices"),
        pytest.param("layers_to_transform", range(2), (0, 1), id="range"),
        pytest.param("layers_to_transform", 2, 2, id="index"),
        pytest.param("k", [2, 4], (2, 4), id="grid"),
        pytest.param("k_pattern", {"a": [2, 4]}, {"a": (2, 4)}, id="grid-pattern"),
        pytest.param("k_pattern", {"a": "auto"}, {"a": "auto"}, id="auto-pattern"),
        pytest.param("task_type", TaskType.CAUSAL_LM, "CAUSAL_LM", id="task"),
    ],
)
def test_keeps_values_in_one_form(field, given, kept):
    value = getattr(GraLoRAConfig(**{field: given}), field)
    assert value == kept
    assert type(value) is type(kept)


def test_keeps_copies_of_mappings():
    ranks = {"q_proj": 8}
    config = GraLoRAConfig(rank_pattern=ranks)
    ranks["q_proj"] = 16
    assert config.rank_pattern == {"q_proj": 8}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_survives_copying(copied):
    config = GraLoRAConfig(r=8, k=(2, 4), target_modules=["a"], k_pattern={"a": (1, 2)})
    assert copied(config) == config


def test_can_be_written_as_json():
    config = GraLoRAConfig(r=8, k=(2, 4), target_modules=["a"], task_type=TaskType.SEQ_CLS)
    text = json.dumps(dataclasses.asdict(config))
    assert GraLoRAConfig(**json.loads(text)) == config


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        pytest.param({"r": 0}, ValueError, "r must be at least 1, got r=0", id="r"),
        pytest.param({"r": True}, TypeError, "r must be an int, got True", id="bool-r"),
        pytest.param({"r": 9, "k": 2}, ValueError, "r must be divisible by k_in", id="r-by-k"),
        pytest.param({"k": 0}, ValueError, "k_out must be at least 1", id="k"),
        pytest.param({"k": "many"}, ValueError, "got 'many'", id="text-k"),
        pytest.param({"k": (1, 2, 3)}, TypeError, r"got \(1, 2, 3\)", id="triple-k"),
        pytest.param({"alpha": float("nan")}, ValueError, "alpha must be finite", id="alpha"),
        pytest.param({"alpha": "1"}, TypeError, "alpha must be a number", id="text-alpha"),
        pytest.param({"hybrid_r": -1}, ValueError, "hybrid_r must be at least 0", id="hybrid"),
        pytest.param({"dropout": 1.5}, ValueError, r"dropout must lie in \[0, 1\]", id="dropout"),
        pytest.param({"use_rslora": 1}, TypeError, "use_rslora must be a bool, got 1", id="rslora"),
        pytest.param({"bias": "lora_only"}, ValueError, "got 'lora_only'", id="bias"),
        pytest.param({"target_modules": []}, ValueError, "at least one module", id="no-target"),
        pytest.param({"target_modules": ""}, ValueError, "at least one module", id="empty-target"),
        pytest.param({"target_modules": ["a", ""]}, ValueError, "no empty name", id="empty-entry"),
        pytest.param({"target_modules": 3}, TypeError, "target_modules must be a str", id="target"),
        pytest.param({"target_modules": "a("}, ValueError, r"got 'a\('", id="target-expression"),
        pytest.param({"exclude_modules": "["}, ValueError, "exclude_modules", id="exclude"),
        pytest.param({"layers_pattern": ["h", "("]}, ValueError, "layers_pattern", id="pattern"),
        pytest.param({"rank_pattern": {"(": 8}}, ValueError, "rank_pattern", id="rank-expression"),
        pytest.param({"rank_pattern": {"a)(b": 8}}, ValueError, "rank_pattern", id="two-halves"),
        pytest.param({"k_pattern": {"(?i)q": 1}}, ValueError, "k_pattern", id="global-flag"),
        pytest.param({"layers_pattern": "(?P<index>h)"}, ValueError, "index", id="pattern-group"),
        pytest.param({"modules_to_save": "head"}, TypeError, r"write \['head'\]", id="save"),
        pytest.param({"layers_to_transform": [-1]}, ValueError, "at least 0", id="index"),
        pytest.param({"layers_to_transform": "1"}, TypeError, "must be an int", id="text-index"),
        pytest.param({"rank_pattern": [1]}, TypeError, "rank_pattern must be a mapping", id="list"),
        pytest.param({"rank_pattern": {"a": 0}}, ValueError, "at least 1", id="pattern-r"),
        pytest.param(
            {"alpha_pattern": {"a": None}}, TypeError, "alpha_pattern", id="pattern-alpha"
        ),
        pytest.param({"k_pattern": {"a": 0}}, ValueError, "at least 1", id="pattern-k"),
        pytest.param({"k_pattern": {"a": 2.0}}, TypeError, "k must be an int", id="pattern-float"),
        pytest.param({"task_type": 3}, TypeError, "task_type must be a str", id="task"),
        pytest.param(
            {"base_model_name_or_path": 3}, TypeError, "base_model_name_or_path", id="base"
        ),
    ],
)
def test_refuses(settings, error, text):
    with pytest.raises(error, match=f"^GraLoRAConfig.*{text}"):
        GraLoRAConfig(**settings)
