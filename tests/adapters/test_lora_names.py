"""Names of layers in a LoRA's config, against PEFT's own matching."""

from __future__ import annotations

import re

import pytest
from peft.utils.other import get_pattern_key

from gralora.adapters.lora_names import PatternReader, write_pattern, write_targets

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "layers.1.self_attn.q_proj",
    "q_proj",
    "odd (name)+.q_proj",
    "model.layers.10.mlp",
]


@pytest.mark.parametrize("chosen", range(len(NAMES)), ids=NAMES)
def test_peft_matches_a_written_key_with_its_layer_alone(chosen: int) -> None:
    pattern = write_pattern({NAMES[chosen]: 3}, NAMES)
    assert list(pattern.values()) == [3]
    matched = [name for name in NAMES if get_pattern_key(list(pattern), name) in pattern]
    assert matched == [NAMES[chosen]]


def test_usual_names_are_written_as_they_are() -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(12)]
    assert list(write_pattern({names[1]: 2}, names)) == [names[1]]


def test_expression_of_targets_means_their_full_names_alone() -> None:
    expression = write_targets(NAMES[:2], as_list=False)
    assert isinstance(expression, str)
    assert [name for name in NAMES if re.fullmatch(expression, name)] == NAMES[:2]


@pytest.mark.parametrize(
    "pattern",
    [
        {"q_proj": 1},
        {"self_attn.q_proj": 1, "q_proj": 2},
        {"q_proj": 2, "model.layers.0.self_attn.q_proj": 1},
        {"^q_proj": 7},
        {r"^odd\ \(name\)\+\.q_proj": 7, r"layers\.1\.self_attn\.q_proj": 4},
        {"_proj": 9},
    ],
    ids=str,
)
def test_reading_agrees_with_peft(pattern: dict[str, int]) -> None:
    reader = PatternReader(pattern, field="rank_pattern", who="test")
    for name in NAMES:
        expected = pattern.get(get_pattern_key(list(pattern), name), 0)
        assert reader.of(name, 0) == expected, name


@pytest.mark.parametrize("key", ["(a+)+", ".*q_proj", "q_proj|v_proj", "layers.[01].q_proj", ""])
def test_other_expressions_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="test: keys of rank_pattern must be names of layers"):
        PatternReader({key: 1}, field="rank_pattern", who="test")


def test_first_key_wins() -> None:
    reader = PatternReader({"b": 1, "a.b": 2}, field="rank_pattern", who="test")
    assert [reader.of(name, 0) for name in ("a.b", "c.b", "c")] == [1, 1, 0]
