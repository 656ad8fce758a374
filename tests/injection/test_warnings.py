"""Entries that matched nothing are named in one warning."""

from __future__ import annotations

import warnings

import pytest
from injection_models import Stack, adapted
from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject


def texts_of(model, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject(model, GraLoRAConfig(r=4, **settings))
    assert all(warning.category is UserWarning for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param({"target_modules": ["up", "query"]}, "target_modules: 'query'", id="target"),
        pytest.param(
            {"target_modules": ["up", "query", "key"]}, "target_modules: 'query', 'key'", id="two"
        ),
        pytest.param(
            {"target_modules": ["up", "head"], "exclude_modules": ["head"]},
            "target_modules: 'head'",
            id="excluded-target",
        ),
        pytest.param({"exclude_modules": ["head", "x"]}, "exclude_modules: 'x'", id="exclude"),
        pytest.param({"exclude_modules": "x.*"}, "exclude_modules: 'x.*'", id="exclude-expression"),
        pytest.param({"modules_to_save": ["norm", "x"]}, "modules_to_save: 'x'", id="save"),
        pytest.param({"rank_pattern": {"up": 2, "x": 2}}, "rank_pattern: 'x'", id="rank"),
        pytest.param({"alpha_pattern": {"x": 2}}, "alpha_pattern: 'x'", id="alpha"),
        pytest.param({"k_pattern": {"up$x": 1}}, "k_pattern: 'up$x'", id="k"),
        pytest.param(
            {"target_modules": ["up"], "layers_to_transform": [1, 9]},
            "layers_to_transform: 9",
            id="layers_to_transform",
        ),
        pytest.param(
            {"layers_pattern": ["blocks"]},
            "layers_pattern: ('blocks',) without layers_to_transform",
            id="layers_pattern",
        ),
    ],
)
def test_entry_without_a_match(settings, named):
    assert texts_of(Stack(), **settings) == [f"inject: entries that matched nothing: {named}"]


def test_all_entries_are_named_at_once():
    (text,) = texts_of(Stack(), target_modules=["up", "x"], modules_to_save=["z"])
    assert text.endswith("target_modules: 'x'; modules_to_save: 'z'")


def test_warning_points_to_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject(Stack(), GraLoRAConfig(r=4, exclude_modules=["x"]))
    assert caught[0].filename == __file__


def test_nothing_has_changed_where_warnings_are_errors():
    model = Stack()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="exclude_modules: 'x'"):
            inject(model, GraLoRAConfig(r=4, exclude_modules=["x"]))
    assert adapted(model) == set()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="all-linear"),
        pytest.param({"target_modules": ["up", "down"], "exclude_modules": ["head"]}, id="endings"),
        pytest.param({"target_modules": ".*up", "rank_pattern": {"blocks.*": 2}}, id="expression"),
        pytest.param({"task_type": "SEQ_CLS"}, id="task-without-its-head"),
    ],
)
def test_silent_where_all_matched(settings):
    assert texts_of(Stack(), **settings) == []


def test_all_linear_says_what_attention_reads_itself():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "other": nn.Linear(16, 16)})
    (text,) = texts_of(model)
    assert "leaves out attention.out_proj: torch.nn.MultiheadAttention reads" in text
    assert adapted(model) == {"other"}


def test_excluded_attention_is_not_mentioned():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "other": nn.Linear(16, 16)})
    assert texts_of(model, exclude_modules=["out_proj"]) == []
