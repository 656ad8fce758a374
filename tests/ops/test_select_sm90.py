"""When projections, weight gradients and base products take the kernels of 9.0a."""

from __future__ import annotations

from typing import Any

import pytest

import gralora.kernels
from gralora import _C
from gralora.explain import explain

PROJECT: dict[str, Any] = {"T": 8192, "width": 1024, "columns": 64, "inner": 4, "outer": 4}
GRADIENTS: dict[str, Any] = {"T": 8192, "gradients": [(4, 1024, 64), (4, 1024, 64)]}
TOO_FEW_TILES = "too few tiles to hide a projection among them"
NO_CODE = "no code for compute capability 9.0a runs there"


@pytest.mark.parametrize(
    ("columns", "tile"),
    [
        (8, (64, 32)),
        (32, (64, 32)),
        (40, (64, 64)),
        (64, (64, 64)),
        (72, (128, 128)),
        (136, (128, 256)),
    ],
)
def test_a_projection_takes_the_tile_that_holds_all_columns(
    columns: int, tile: tuple[int, int]
) -> None:
    choice = _C.select_project(**{**PROJECT, "columns": columns})
    assert (choice["kernel"], choice["path"], choice["tile"]) == ("sm90", "kernel", tile)
    assert choice["splits"] == 1


@pytest.mark.parametrize(("T", "columns"), [(512, 72), (512, 128), (1024, 128)])
def test_a_projection_of_few_tokens_takes_small_tiles_that_fill_the_chip(
    T: int, columns: int
) -> None:
    few = _C.select_project(**{**PROJECT, "T": T, "columns": columns})
    assert (few["kernel"], few["path"], few["tile"]) == ("sm90", "kernel", (64, 64))
    # A quarter as many multiprocessors.
    small = _C.select_project(**{**PROJECT, "T": T, "columns": columns}, processors=33)
    assert small["tile"] == (128, 128)


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({"T": 256}, "sm90"),
        ({"T": 255}, "sm80"),
        ({"columns": 264}, "sm80"),
        # 16 CTAs of the wide tile, or 32 of the narrow one.
        ({"T": 256, "columns": 128}, "sm80"),
        ({"drops": True, "T": 2048}, "sm90"),
        ({"drops": True, "T": 2047}, "sm80"),
        ({"drops": True, "columns": 128}, "sm90"),
        ({"drops": True, "columns": 136}, "sm80"),
        ({"sm90": False}, "sm80"),
        ({"x_row_stride": 0}, "sm80"),
        ({"factor_block_stride": 0}, "sm80"),
        ({"factor_pitch": 0}, "sm80"),
        ({"factor_pitch": 0, "factor_transposed": True}, "sm80"),
        # Walks of 32 steps, by 32 CTAs and by 16; and of 33.
        ({"T": 1024, "inner": 2, "width": 2048, "columns": 32}, "sm90"),
        ({"T": 512, "inner": 2, "width": 2048, "columns": 32}, "sm80"),
        ({"T": 1024, "inner": 2, "width": 2056, "columns": 32}, "sm80"),
        # Halves of 128 columns would be 44 CTAs, with more latents than they were tried with.
        ({"T": 1408, "inner": 1, "outer": 2, "width": 14336, "columns": 128}, "sm80"),
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
    [(40, (128, 64), 2), (64, (128, 64), 2), (128, (128, 128), 2)],
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
        ({"gradients": [(4, 1024, 32)]}, "sm80", "kernel"),
        ({"drops": True}, "sm80", "kernel"),
        ({"sm90": False}, "sm80", "kernel"),
    ],
    ids=["short_walk", "rank", "narrow", "drops", "chip"],
)
def test_weight_gradients_that_do_not(change: dict[str, Any], kernel: str, path: str) -> None:
    choice = _C.select_weight_gradient(**{**GRADIENTS, **change})
    assert (choice["kernel"], choice["path"]) == (kernel, path)


PRODUCT: dict[str, Any] = {"T": 8192, "depth": 4096, "width": 1024, "rank": 64, "blocks": 4}


@pytest.mark.parametrize(
    ("change", "tile"),
    [
        ({}, (128, 256)),
        ({"T": 1024}, (128, 256)),
        # 32 clusters of wide tiles, for 66 places; 64 of narrow ones.
        ({"T": 512}, (128, 128)),
        ({"T": 2048, "width": 256}, (128, 128)),
        # The term of dx in the same sums, dropped there.
        ({"drops": True}, (128, 256)),
        ({"drops": True, "T": 2048}, (128, 256)),
        # Half of a wide tile would be empty.
        ({"T": 2048, "width": 128, "blocks": 8}, (128, 128)),
        # Two rounds, of which the second is not full.
        ({"T": 512, "width": 3584}, (128, 256)),
        # A chip with fewer places.
        ({"T": 512, "processors": 66}, (128, 256)),
    ],
    ids=str,
)
def test_the_base_product_takes_the_tile_that_keeps_processors_at_work(
    change: dict[str, Any], tile: tuple[int, int]
) -> None:
    choice = _C.select_extended_product(**{**PRODUCT, **change})
    assert (choice["path"], choice["tile"]) == ("kernel", tile)


@pytest.mark.parametrize(
    ("change", "possible", "reason"),
    [
        ({"T": 256}, True, "its tiles leave processors idle"),
        ({"T": 1024, "width": 256}, True, "its tiles leave processors idle"),
        # Four rounds, of which the last is not full.
        ({"T": 1024, "width": 3584}, True, "its tiles leave processors idle"),
        ({"T": 8192, "width": 128, "blocks": 8}, True, "its tiles leave processors idle"),
        # A short walk of narrow tiles.
        ({"T": 512, "depth": 1024}, True, "its tiles leave processors idle"),
        (
            {"drops": True, "T": 2047},
            True,
            "so few tokens are dropped where the term is written",
        ),
        ({"sm90": False}, False, NO_CODE),
        ({"cluster": 1}, False, "two blocks cannot form a cluster there"),
        ({"processors": 1}, False, "two blocks cannot form a cluster there"),
        ({"half": False}, False, "operands are not of 16 bits"),
        (
            {"drops": True, "by_depth": True},
            False,
            "dropout acts beside a weight whose depth is contiguous",
        ),
        ({"depth": 4092}, False, "a width is not a multiple of 8"),
        ({"width": 1020}, False, "a width is not a multiple of 8"),
        ({"T": 2**30 + 1}, False, "an axis is longer than 2^30"),
        ({"rank": 1025}, False, "the rank is not within 1 to 1024"),
        ({"rank": 0}, False, "the rank is not within 1 to 1024"),
        ({"aligned": False}, False, "rows are not 16-byte aligned"),
        ({"matched": False}, False, "weight and factor have the same axis contiguous"),
    ],
    ids=str,
)
def test_base_products_that_stay_the_librarys(
    change: dict[str, Any], possible: bool, reason: str
) -> None:
    choice = _C.select_extended_product(**{**PRODUCT, **change})
    assert (choice["path"], choice["possible"], choice["reason"]) == ("library", possible, reason)


@pytest.mark.parametrize(
    ("path", "taken"), [("aten", "library"), ("sm80", "library"), ("sm90", "kernel")]
)
def test_a_forced_path_decides_over_the_base_product(path: Any, taken: str) -> None:
    with gralora.kernels.forced(path):
        assert _C.select_extended_product(**{**PRODUCT, "T": 256})["path"] == taken


@pytest.mark.parametrize(
    ("change", "path"),
    [
        # Three rounds that are full, where k and v alone would fill half of one each.
        ({"T": 2048}, "kernel"),
        ({"T": 8192}, "kernel"),
        # A round and a half.
        ({"T": 1024}, "library"),
        ({"T": 8192, "more": [(4, 256), (4, 252)]}, "library"),
    ],
    ids=str,
)
def test_layers_over_one_input_count_their_tiles_together(
    change: dict[str, Any], path: str
) -> None:
    layers = {**PRODUCT, "more": [(4, 256), (4, 256)]}
    assert _C.select_extended_product(**{**layers, **change})["path"] == path


# Its latents made on the way, from four blocks of the input.
PROJECTING: dict[str, Any] = {**PRODUCT, "inner": 4}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"T": 4096},
        {"depth": 2048},
        {"rank": 256},
        {"width": 512},
        # Forward, with half as many tokens.
        {"T": 2048, "width": 2048, "by_depth": True},
    ],
    ids=str,
)
def test_the_base_product_projects_on_the_way_where_tiles_hide_it(change: dict[str, Any]) -> None:
    choice = _C.select_extended_product(**{**PROJECTING, **change})
    assert (choice["path"], choice["tile"]) == ("kernel", (128, 256))


@pytest.mark.parametrize(
    ("change", "possible", "reason"),
    [
        ({"T": 2048, "by_depth": True}, True, TOO_FEW_TILES),
        ({"T": 2047, "width": 3584, "by_depth": True}, True, TOO_FEW_TILES),
        ({"T": 4095, "width": 2048}, True, TOO_FEW_TILES),
        ({"depth": 1024}, True, TOO_FEW_TILES),
        # Two rounds.
        ({"width": 256}, True, TOO_FEW_TILES),
        ({"depth": 4072, "inner": 4}, False, "a block's width is not a multiple of 8"),
        ({"rank": 48}, False, "a block's share of the rank is not a multiple of 8"),
        ({"rank": 288}, False, "a block has more latents than the tile has columns"),
        # Of three layers together.
        (
            {"rank": 88, "inner": 1, "more": [(4, 256), (4, 256)]},
            False,
            "a block has more latents than the tile has columns",
        ),
        ({"drops": True}, False, "dropout acts where latents would be made on the way"),
        ({"matched": False}, False, "weight and factor have the same axis contiguous"),
        ({"sm90": False}, False, NO_CODE),
    ],
    ids=str,
)
def test_latents_that_are_not_made_on_the_way(
    change: dict[str, Any], possible: bool, reason: str
) -> None:
    choice = _C.select_extended_product(**{**PROJECTING, **change})
    assert (choice["path"], choice["possible"], choice["reason"]) == ("library", possible, reason)


# A narrow layer's forward pass, whose tiles make their latents themselves.
NARROW: dict[str, Any] = {**PROJECTING, "width": 256, "by_depth": True}


@pytest.mark.parametrize(
    ("change", "tile"),
    [
        ({}, (128, 256)),
        ({"T": 2048}, (128, 128)),
        ({"T": 4096, "width": 512}, (128, 256)),
        ({"rank": 32, "inner": 2, "blocks": 2, "width": 512}, (128, 256)),
        ({"more": [(4, 256)], "T": 4096}, (128, 256)),
        # More latents in a row than a tile has columns, which the way besides could not make.
        ({"T": 2048, "width": 128, "blocks": 16}, (128, 128)),
    ],
    ids=str,
)
def test_tiles_of_a_narrow_layer_make_their_latents(
    change: dict[str, Any], tile: tuple[int, int]
) -> None:
    choice = _C.select_extended_product(**{**NARROW, **change})
    assert (choice["path"], choice["in_tiles"], choice["tile"]) == ("kernel", True, tile)
    assert choice["reason"] == "the latents are made in every tile of the base product"


@pytest.mark.parametrize(
    "change",
    [
        {"T": 2047},
        # 2176 columns, in tiles that fill the chip.
        {"width": 544, "T": 2048, "processors": 160},
        # Ranks that are not 16 a block, or too many; a block that ends within a step.
        {"rank": 32},
        {"rank": 80, "inner": 5, "depth": 5120},
        {"depth": 4 * 1032},
        {"by_depth": False},
        {"terms": 2},
        # Where the latents are made on the way.
        {"T": 8192, "width": 512},
    ],
    ids=str,
)
def test_tiles_that_do_not_make_their_latents(change: dict[str, Any]) -> None:
    assert not _C.select_extended_product(**{**NARROW, **change})["in_tiles"]


@pytest.mark.parametrize("path", ["aten", "sm80"])
def test_a_forced_path_decides_over_latents_in_tiles(path: Any) -> None:
    with gralora.kernels.forced(path):
        choice = _C.select_extended_product(**NARROW)
    assert (choice["path"], choice["in_tiles"]) == ("library", False)


@pytest.mark.parametrize(
    ("path", "taken"), [("aten", "library"), ("sm80", "library"), ("sm90", "kernel")]
)
def test_a_forced_path_decides_over_the_way(path: Any, taken: str) -> None:
    with gralora.kernels.forced(path):
        assert _C.select_extended_product(**{**PROJECTING, "T": 1})["path"] == taken


def test_explain_names_the_base_product_that_takes_the_term_along() -> None:
    steps = explain(8192, 4096, 4096, 64, 4, processors=132, cluster=8, sm90=True)
    assert [step["step"] for step in steps] == [
        "H = x A, y = x W^T + H B", "G = dy B^T, dx = dy W + G A^T, dA, dB",
    ]  # fmt: skip
    fewer = explain(2048, 4096, 4096, 64, 4, processors=132, cluster=8, sm90=True)
    assert [step["step"] for step in fewer] == [
        "H = x A", "y = x W^T + H B", "G = dy B^T", "dx = dy W + G A^T, dA, dB",
    ]  # fmt: skip
    narrow = explain(8192, 4096, 1024, 64, 4, processors=132, cluster=8, sm90=True)
    assert narrow[0]["step"] == "H = x A, y = x W^T + H B"
    assert "in every tile" in narrow[0]["reason"]
    dropped = explain(8192, 4096, 4096, 64, 4, processors=132, cluster=8, sm90=True, dropout=True)
    assert [step["step"] for step in dropped] == [
        "H = x A", "y = x W^T + H B", "G = dy B^T", "dx = dy W + G A^T, dB", "dA",
    ]  # fmt: skip


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


def test_forced_steps_with_dropout_take_it_but_for_wide_projections() -> None:
    with gralora.kernels.forced("sm90"):
        few = _C.select_project(**{**PROJECT, "T": 1}, drops=True)
        wide = _C.select_project(**{**PROJECT, "columns": 136}, drops=True)
        sums = _C.select_weight_gradient(**GRADIENTS, drops=True)
        elsewhere = _C.select_project(**{**PROJECT, "columns": 136}, drops=True, sm90=False)
    assert (few["kernel"], few["path"]) == ("sm90", "kernel")
    assert (wide["kernel"], wide["path"]) == ("sm80", "kernel")
    assert (sums["kernel"], sums["path"]) == ("sm90", "kernel")
    assert (elsewhere["possible"], elsewhere["reason"]) == (False, NO_CODE)
