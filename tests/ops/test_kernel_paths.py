"""Every path of the products: the kernels and library calls, forced in turn, against fp64."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops_cases import (
    Grid,
    Operands,
    assert_close,
    assert_gradients_close,
    expected_add,
    expected_linear,
    make_operands,
    run_add,
    run_linear,
)
from ops_paths import dtypes, on_path, paths
from torch import Tensor

import gralora.kernels
from gralora import _C

# Shapes that the kernels can address: widths are multiples of 8.
GRIDS = {
    "lora_rank_16": Grid(k_in=1, k_out=1, n=72, m=40, s=16),
    "square": Grid(k_in=2, k_out=2, n=96, m=64, s=8),
    "blocks_of_288_and_48": Grid(k_in=2, k_out=4, n=288, m=48, s=8),
    "one_output_block": Grid(k_in=3, k_out=1, n=64, m=136, s=8),
    "one_input_block": Grid(k_in=1, k_out=5, n=200, m=72, s=8),
    "odd_sub_rank": Grid(k_in=8, k_out=8, n=24, m=16, s=3),
    "rank_above_tiles": Grid(k_in=4, k_out=4, n=64, m=72, s=40),
    "hybrid": Grid(k_in=2, k_out=2, n=96, m=64, s=8, r0=24),
    "plain_pair_alone": Grid(k_in=1, k_out=1, n=136, m=72, s=0, r0=16),
    "odd_ranks": Grid(k_in=2, k_out=2, n=96, m=64, s=3),
    "odd_ranks_hybrid": Grid(k_in=2, k_out=4, n=96, m=64, s=1, r0=5),
}
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
TOKENS = [1, 7, 64, 65, 200]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("T", TOKENS)
@dtypes
@grids
@paths
def test_linear(
    path: str, grid: Grid, dtypes: tuple[torch.dtype, torch.dtype], T: int, cuda: torch.device
) -> None:
    dtype, factor_dtype = dtypes
    operands = make_operands(grid, (T,), dtype=dtype, factor_dtype=factor_dtype, device=cuda)
    result, gradients = on_path(path, lambda: run_linear(operands))
    expected, expected_gradients = expected_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=dtype)
    for name, gradient in gradients.items():
        assert gradient.dtype == getattr(operands, name).dtype


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("factor_dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@grids
def test_each_kernel_of_linear(grid: Grid, factor_dtype: torch.dtype, cuda: torch.device) -> None:
    operands = make_operands(
        grid, (67,), dtype=torch.float16, factor_dtype=factor_dtype, device=cuda
    )
    result, gradients = on_path("sm80", lambda: run_linear(operands))
    expected, expected_gradients = expected_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float16)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@paths
def test_many_tokens(path: str, bias: bool, cuda: torch.device) -> None:
    grid = Grid(k_in=2, k_out=2, n=64, m=72, s=8, r0=8)
    operands = make_operands(grid, (3, 1111), dtype=torch.bfloat16, device=cuda, bias=bias)
    result, gradients = on_path(path, lambda: run_linear(operands))
    expected, expected_gradients = expected_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("grid", [GRIDS["square"], GRIDS["hybrid"], GRIDS["plain_pair_alone"]])
@pytest.mark.parametrize("T", [1, 65])
@paths
def test_add(path: str, T: int, grid: Grid, cuda: torch.device) -> None:
    operands = make_operands(grid, (T,), dtype=torch.bfloat16, device=cuda)
    result, gradients = on_path(path, lambda: run_add(operands))
    expected, expected_gradients = expected_add(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)


@paths
def test_dropout_has_one_mask_on_every_path(path: str, cuda: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (33,), dtype=torch.bfloat16, device=cuda)
    drop: dict[str, Any] = {"dropout_p": 0.4}

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(5)
        return run_linear(operands, **drop)

    result, gradients = on_path(path, run)
    expected, expected_gradients = on_path(None, run)
    torch.testing.assert_close(result, expected, rtol=0.05, atol=0.05)
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name].double(), dtype=torch.bfloat16, name=name)


@grids
def test_the_kernels_repeat_their_bits(grid: Grid, cuda: torch.device) -> None:
    operands = make_operands(grid, (130,), dtype=torch.bfloat16, device=cuda)
    with gralora.kernels.forced("sm80"):
        result, gradients = run_linear(operands)
        for _ in range(20):
            again, gradients_again = run_linear(operands)
            assert torch.equal(again, result)
            assert all(torch.equal(gradients_again[name], gradients[name]) for name in gradients)


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=["inf", "nan"])
@pytest.mark.parametrize("name", ["x", "A", "B", "lora_A", "lora_B"])
def test_what_is_not_finite_is_where_the_reference_has_it(
    name: str, value: float, cuda: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], (70,), dtype=torch.bfloat16, device=cuda, bias=False)
    operands = replace(operands, weight=torch.zeros_like(operands.weight))
    getattr(operands, name).view(-1)[77] = value
    result = on_path("sm80", lambda: operands.linear())
    expected, _ = expected_linear(operands.map(torch.Tensor.double, ["x", "dy"]))
    assert torch.equal(result.isfinite(), expected.isfinite())


@pytest.mark.cuda_kernels
def test_gradients_of_some_factors_alone(cuda: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (65,), dtype=torch.bfloat16, device=cuda)
    _, expected = expected_linear(operands)
    for names in (["A"], ["B"], ["lora_A"], ["lora_B"], ["A", "lora_B"], ["x", "B"]):
        leaves = operands.requiring_grad(names)
        given = leaves.named(names)
        with gralora.kernels.forced("sm80"):
            gradients = torch.autograd.grad(leaves.linear(), list(given.values()), leaves.dy)
        for name, gradient in zip(names, gradients, strict=True):
            assert_close(gradient, expected[name], dtype=torch.bfloat16, name=name)


@pytest.mark.cuda_kernels
def test_factors_of_any_strides(cuda: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (65,), dtype=torch.bfloat16, device=cuda)
    expected, expected_gradients = expected_linear(operands)
    turned = operands.map(lambda t: t.mT.contiguous().mT, ["A", "B", "lora_A", "lora_B"])
    result, gradients = on_path("sm80", lambda: run_linear(turned))
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)


def _misfit(cuda: torch.device, **settings: Any) -> Operands:
    return make_operands(Grid(k_in=2, k_out=2, n=20, m=64, s=8), (9,), device=cuda, **settings)


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (torch.bfloat16, "the block width is not a multiple of 8"),
        (torch.float32, "operands are not of 16 bits"),
    ],
    ids=["odd_width", "fp32"],
)
def test_a_forced_kernel_that_cannot_run_says_why(
    dtype: torch.dtype, reason: str, cuda: torch.device
) -> None:
    operands = _misfit(cuda, dtype=dtype)
    with pytest.raises(RuntimeError, match=f'"sm80" is forced.*project cannot run: {reason}'):
        on_path("sm80", lambda: operands.linear())


def test_forcing_ends_with_the_block() -> None:
    with gralora.kernels.forced("aten"):
        with gralora.kernels.forced("sm80"):
            assert _C.forced_path() == "sm80"
        assert _C.forced_path() == "aten"
        with gralora.kernels.forced(None):
            assert _C.forced_path() is None
    assert _C.forced_path() is None


def test_forcing_ends_with_an_error() -> None:
    with pytest.raises(KeyError), gralora.kernels.forced("aten"):
        raise KeyError
    assert _C.forced_path() is None


def test_an_unknown_path_is_refused() -> None:
    with (
        pytest.raises(ValueError, match='path must be "aten", "sm80", "sm90" or None, got "sm70"'),
        gralora.kernels.forced("sm70"),  # type: ignore[arg-type]
    ):
        pass


def _with_variable(value: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", f"from gralora import _C\n{code}"],
        env={**os.environ, "GRALORA_KERNEL": value},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("value", "path"), [("aten", "aten"), ("sm80", "sm80"), ("sm90", "sm90"), ("", "None")]
)
def test_the_environment_forces_a_path(value: str, path: str) -> None:
    run = _with_variable(value, "print(_C.forced_path())")
    assert run.stdout.strip() == path


def test_an_unknown_path_in_the_environment_is_refused() -> None:
    run = _with_variable("sm70", "print(_C.forced_path())")
    assert run.returncode != 0
    assert 'GRALORA_KERNEL must be "aten", "sm80", "sm90" or unset, got "sm70"' in run.stderr


SMALL = {"T": 512, "width": 2048}
# Of a chip without kernels of its own (test_select_sm90.py has those).
GRADIENTS: dict[str, Any] = {
    "T": 1024, "gradients": [(4, 1024, 64), (4, 1024, 64)], "sm90": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "path", "possible", "reason"),
    [
        ({}, "kernel", True, "aligned 16-bit operands, few results"),
        ({"T": 513}, "library", True, "more than 512 tokens"),
        ({"blocks": 8}, "library", True, "more than 2^21 results"),
        ({"width": 60}, "library", False, "the block width is not a multiple of 8"),
        ({"half": False}, "library", False, "operands are not of 16 bits"),
        ({"aligned": False}, "library", False, "rows are not 16-byte aligned"),
        ({"T": 8192, "bias": True}, "kernel", True, "the bias in the same pass"),
        ({"bias": True}, "library", True, "few results: the base product adds the bias"),
        ({"T": 8192, "drops": True}, "kernel", True, "dropout in the same pass"),
        ({"drops": True}, "kernel", True, "dropout in the same pass"),
    ],
    ids=[
        "few",
        "tokens",
        "blocks",
        "width",
        "fp32",
        "unaligned",
        "bias",
        "bias_few",
        "drops",
        "drops_few",
    ],
)
def test_choice_of_the_expansion(
    change: dict[str, Any], path: str, possible: bool, reason: str
) -> None:
    choice = _C.select_expand(**{**SMALL, **change})
    assert (choice["path"], choice["possible"], choice["reason"]) == (path, possible, reason)


@pytest.mark.parametrize(("T", "tile"), [(512, (64, 64)), (513, (128, 128))])
def test_tile_of_the_expansion(T: int, tile: tuple[int, int]) -> None:
    assert _C.select_expand(**{**SMALL, "T": T})["tile"] == tile


@pytest.mark.parametrize(
    ("change", "path", "possible", "reason"),
    [
        ({}, "kernel", True, "aligned 16-bit operands, a short walk"),
        ({"T": 1025}, "kernel", True, "aligned 16-bit operands, one reading of each"),
        (
            {"T": 1025, "gradients": [(4, 1024, 136)]},
            "library",
            True,
            "more tokens than a short walk and a rank above 64",
        ),
        (
            {"T": 1025, "gradients": [(4, 1024, 136)], "drops": True},
            "kernel",
            True,
            "dropout while reading, without a copy of the input",
        ),
        ({"half": False}, "library", False, "operands are not of 16 bits"),
        ({"T": 2**30 + 1}, "library", False, "more than 2^30 tokens"),
        ({"aligned": False}, "library", False, "rows are not 16-byte aligned"),
        ({"narrow": False}, "library", False, "a gradient is fp64"),
    ],
    ids=["few", "tokens", "rank", "drops", "fp32", "too_many", "unaligned", "fp64_factors"],
)
def test_choice_of_the_weight_gradient(
    change: dict[str, Any], path: str, possible: bool, reason: str
) -> None:
    choice = _C.select_weight_gradient(**{**GRADIENTS, **change})
    assert (choice["path"], choice["possible"], choice["reason"]) == (path, possible, reason)


@pytest.mark.parametrize(
    ("change", "tile", "splits"),
    [
        ({}, (64, 64), 1),
        ({"T": 8192}, (128, 64), 2),
        ({"T": 8192, "gradients": [(2, 2048, 32)] * 2}, (128, 32), 2),
        ({"T": 8192, "gradients": [(4, 1024, 128)] * 2}, (128, 64), 1),
        ({"T": 8192, "gradients": [(4, 3584, 64), (4, 1024, 64)]}, (128, 64), 5),
        ({"T": 8192, "processors": 32}, (128, 64), 1),
    ],
    ids=["few", "r64", "r32", "r128", "wide", "small_chip"],
)
def test_tile_and_split_of_the_weight_gradient(
    change: dict[str, Any], tile: tuple[int, int], splits: int
) -> None:
    choice = _C.select_weight_gradient(**{**GRADIENTS, **change})
    assert (choice["tile"], choice["splits"]) == (tile, splits)


@pytest.mark.parametrize("T", [2049, 8192, 32768])
@pytest.mark.parametrize("width", [64, 1024, 3584, 14336])
@pytest.mark.parametrize("rank", [16, 64, 128])
@pytest.mark.parametrize("sm90", [False, True], ids=["sm80", "sm90"])
def test_partial_sums_fit_the_workspace(T: int, width: int, rank: int, sm90: bool) -> None:
    gradients = [(4, width, rank)] * 2
    choice = _C.select_weight_gradient(T=T, gradients=gradients, sm90=sm90)
    activations, latents = choice["tile"]
    tiles = sum(k * -(-w // activations) * -(-r // latents) for k, w, r in gradients)
    assert (
        tiles * choice["splits"] * activations * latents * 4 <= 32 * 2**20 or choice["splits"] == 1
    )
