"""``gralora info --explain``: which kernels a shape takes, and why."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from gralora.cli import main
from gralora.explain import explain


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["info", "--explain", *arguments])


def test_few_tokens_take_the_kernels_throughout():
    steps = explain(16, 4096, 4096, 64, 4, "bf16", processors=132, cluster=8)
    assert [step["step"] for step in steps] == [
        "H = x A",
        "y = x W^T + H B",
        "G = dy B^T, dB",
        "dx = dy W + G A^T, dA",
    ]
    assert {step["path"] for step in steps} == {"kernel"}


def test_only_few_tokens_share_launches():
    for T in (65, 8192):
        steps = explain(T, 4096, 4096, 32, 2, "bf16", processors=132, cluster=8)
        assert [step["step"] for step in steps][2:] == ["G = dy B^T", "dx = G A^T", "dA, dB"]


def test_older_chips_share_launches_too():
    old = explain(64, 4096, 4096, 64, 4, "bf16", processors=108, cluster=1)
    assert [step["step"] for step in old][2:] == ["G = dy B^T, dB", "dx = G A^T, dA"]


def test_many_tokens_and_a_large_rank_take_library_products():
    steps = explain(8192, 4096, 4096, 128, 4, "bf16", processors=132, cluster=8)
    assert {step["path"] for step in steps} == {"library"}


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_wide_dtypes_take_library_calls(dtype):
    steps = explain(16, 4096, 4096, 64, 4, dtype)
    assert {step["reason"] for step in steps} == {"operands are not of 16 bits"}


def test_odd_blocks_take_library_calls():
    steps = {step["step"]: step for step in explain(16, 36, 64, 8, 2, "bf16")}
    assert steps["H = x A"]["reason"] == "the block width is not a multiple of 8"
    assert steps["G = dy B^T, dB"]["path"] == "kernel"
    assert steps["y = H B"]["path"] == "kernel"
    assert steps["dA"]["path"] == "library"


def test_blocks_that_end_between_alignments_leave_their_gradients_to_library_calls():
    steps = {step["step"]: step["path"] for step in explain(8, 1024, 1032, 16, 2, "bf16")}
    assert steps["dx = dy W + G A^T"] == "kernel"
    assert steps["dA, dB"] == "library"


def test_a_grid_of_ranks_that_are_not_aligned_takes_kernels():
    steps = {step["step"]: step["path"] for step in explain(16, 128, 128, 6, 2, "bf16")}
    assert steps == {
        "H = x A": "kernel",
        "y = x W^T + H B": "kernel",
        "G = dy B^T, dB": "kernel",
        "dx = dy W + G A^T, dA": "kernel",
    }


def test_a_bias_is_written_with_the_term_of_many_tokens():
    listed = explain(8192, 4096, 4096, 64, 4, "bf16", processors=108, cluster=1, bias=True)
    steps = {step["step"]: step for step in listed}
    assert steps["y = H B"]["path"] == "kernel"
    assert steps["y = H B"]["reason"] == "the bias in the same pass"
    assert steps["dx = G A^T"]["path"] == "library"


def test_with_few_tokens_the_base_product_brings_the_bias():
    steps = {step["step"]: step for step in explain(32, 4096, 4096, 64, 4, "bf16", bias=True)}
    assert steps["y = H B"]["path"] == "kernel"
    assert "onto the base product and its bias" in steps["y = H B"]["reason"]


def test_dropout_takes_the_kernels_where_it_acts():
    steps = {step["step"]: step for step in explain(8192, 4096, 4096, 64, 4, "bf16", dropout=True)}
    dropped = {name for name, step in steps.items() if "dropout" in step["reason"]}
    assert dropped == {"H = x A", "dx = dy W + G A^T, dB", "dA"}


def test_options_reach_the_explanation():
    result = _run("8192", "4096", "4096", "64", "4", "bf16", "--json", "--bias", "--dropout")
    expected = explain(8192, 4096, 4096, 64, 4, "bf16", bias=True, dropout=True)
    assert json.loads(result.output) == {"steps": expected}


@pytest.mark.parametrize("processors", [0, -1])
def test_a_chip_has_processors(processors):
    with pytest.raises(ValueError, match="processors must be at least 1"):
        explain(8192, 4096, 4096, 64, 4, processors=processors, cluster=1)
    with pytest.raises(ValueError, match="cluster must be at least 1"):
        explain(8192, 4096, 4096, 64, 4, processors=132, cluster=processors)


def test_a_chip_is_given_whole():
    with pytest.raises(ValueError, match="processors and cluster must be given together"):
        explain(8192, 4096, 4096, 64, 4, processors=132)


def test_table_shows_every_step_with_its_reason():
    result = _run("8192", "4096", "4096", "64", "4", "bf16")
    assert result.exit_code == 0
    text = " ".join(result.output.replace("│", " ").split())
    for part in ("H = x A", "dA, dB", "kernel", "among and in the base product's"):
        assert part in text


def test_json_is_one_object_with_the_list_of_steps():
    result = _run("16", "4096", "4096", "64", "4", "bf16", "--json")
    assert json.loads(result.output) == {"steps": explain(16, 4096, 4096, 64, 4, "bf16")}


@pytest.mark.parametrize("option", ["--bias", "--dropout"])
def test_what_a_layer_has_is_said_of_a_shape(option):
    result = CliRunner().invoke(main, ["info", option])
    assert result.exit_code == 2
    assert f"{option} must come with --explain" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("16", "4097", "4096", "64", "4", "bf16"), "N must be divisible by K, got N=4097, K=4"),
        (("16", "4096", "4098", "64", "4", "bf16"), "M must be divisible by K, got M=4098, K=4"),
        (("16", "4096", "4096", "6", "4", "bf16"), "R must be divisible by K, got R=6, K=4"),
        (("16", "4096", "4096", "0", "4", "bf16"), "R must be at least 1, got R=0"),
        (("16", "4096", "4096", "64", "0", "bf16"), "K must be at least 1, got K=0"),
        (("0", "4096", "4096", "64", "4", "bf16"), "T must be at least 1, got T=0"),
        (("16", "4096", "4096", "64", "4", "int8"), "DTYPE must be one of bf16, fp16, fp32, fp64"),
    ],
    ids=["in", "out", "rank", "no_rank", "no_blocks", "no_tokens", "dtype"],
)
def test_a_shape_that_cannot_be_is_an_error_without_a_traceback(arguments, message):
    result = _run(*arguments)
    assert result.exit_code == 2
    assert f"--explain: {message}" in " ".join(result.output.replace("│", " ").split())
