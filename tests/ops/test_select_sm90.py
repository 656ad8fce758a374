"""When projections and weight gradients take the kernels of compute capability 9.0a."""

from __future__ import annotations

from typing import Any

import pytest

import gralora.kernels
from gralora import _C

PROJECT: dict[str, Any] = {"T": 8192, "width": 1024, "columns": 64, "inner": 4, "outer": 4}
GRADIENTS: dict[str, Any] = {"T": 8192, "gradients": [(4, 1024, 64), (4, 1024, 64)]}
NO_CODE = "no code for compute capability 9.0a runs there"


@pytest.mark.parametrize(
    ("columns", "tile"),
    [(8, (64, 32)), (32, (64, 32)), (40, (64, 64)), (64, (64, 64)), (72, (128, 128))],
)
def test_a_projection_takes_the_tile_that_holds_all_columns(
    columns: int, tile: tuple[int, int]
) -> None:
    choice = _C.select_project(**{**PROJECT, "columns": columns})
    assert (choice["kernel"], choice["path"], choice["tile"]) == ("sm90", "kernel", tile)
    assert choice["splits"] == 1


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({"T": 256}, "sm90"),
        ({"T": 255}, "sm80"),
        ({"columns": 136}, "sm80"),
        ({"drops": True}, "sm80"),
        ({"sm90": False}, "sm80"),
        ({"x_row_stride": 0}, "sm80"),
        # One block: a long walk needs more tokens to fill the chip.
        ({"T": 2048, "inner": 1, "outer": 2, "width": 4096}, "sm80"),
        ({"T": 4096, "inner": 1, "outer": 2, "width": 4096}, "sm90"),
        ({"T": 8192, "inner": 1, "outer": 1, "width": 4096}, "sm90"),
    ],
    ids=str,
)
def test_projections_that_take_it(change: dict[str, Any], kernel: str) -> None:
    assert _C.select_project(**{**PROJECT, **change})["kernel"] == kernel


@pytest.mark.parametrize(
    ("rank", "tile", "splits"),
    [(32, (128, 32), 2), (64, (128, 64), 2), (128, (128, 128), 2)],
)
def test_weight_gradients_take_the_tile_that_holds_all_latents(
    rank: int, tile: tuple[int, int], splits: int
) -> None:
    choice = _C.select_weight_gradient(T=8192, gradients=[(4, 1024, rank)] * 2)
    assert (choice["kernel"], choice["tile"], choice["splits"]) == ("sm90", tile, splits)


@pytest.mark.parametrize(
    ("change", "kernel", "path"),
    [
        ({"T": 1024}, "sm80", "kernel"),
        ({"gradients": [(4, 1024, 136)]}, "sm80", "library"),
        ({"drops": True}, "sm80", "kernel"),
        ({"sm90": False}, "sm80", "kernel"),
    ],
    ids=["short_walk", "rank", "drops", "chip"],
)
def test_weight_gradients_that_do_not(change: dict[str, Any], kernel: str, path: str) -> None:
    choice = _C.select_weight_gradient(**{**GRADIENTS, **change})
    assert (choice["kernel"], choice["path"]) == (kernel, path)


def test_forced_it_is_taken_for_any_number_of_tokens() -> None:
    with gralora.kernels.forced("sm90"):
        assert _C.select_project(**{**PROJECT, "T": 1})["kernel"] == "sm90"
        assert _C.select_weight_gradient(**{**GRADIENTS, "T": 1})["kernel"] == "sm90"


def test_forced_to_the_portable_kernels_it_is_not() -> None:
    with gralora.kernels.forced("sm80"):
        assert _C.select_project(**PROJECT)["kernel"] == "sm80"
        assert _C.select_weight_gradient(**GRADIENTS)["kernel"] == "sm80"


def test_forced_on_another_chip_it_is_impossible() -> None:
    with gralora.kernels.forced("sm90"):
        project = _C.select_project(**PROJECT, sm90=False)
        sums = _C.select_weight_gradient(**GRADIENTS, sm90=False)
    for choice in (project, sums):
        assert (choice["possible"], choice["reason"]) == (False, NO_CODE)


def test_forced_a_step_with_dropout_takes_the_portable_kernel() -> None:
    with gralora.kernels.forced("sm90"):
        project = _C.select_project(**PROJECT, drops=True)
        sums = _C.select_weight_gradient(**GRADIENTS, drops=True)
    for choice in (project, sums):
        assert (choice["kernel"], choice["path"]) == ("sm80", "kernel")
