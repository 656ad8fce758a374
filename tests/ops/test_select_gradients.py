"""When the factors' gradients are summed among the tiles of a base product."""

from __future__ import annotations

from typing import Any

import pytest

import gralora.kernels
from gralora import _C

TOO_MANY_LATENTS = "walks with so many latents are faster apart"

BACKWARD: dict[str, Any] = {
    "T": 8192,
    "depth": 4096,
    "width": 1024,
    "rank": 64,
    "blocks": 4,
    "gradients": [(4, 1024, 64), (4, 1024, 64)],
}


@pytest.mark.parametrize("inner", [0, 4], ids=["latent_there", "on_the_way"])
@pytest.mark.parametrize(
    ("change", "span"),
    [
        ({}, 2048),
        ({"gradients": [(4, 1024, 64)]}, 2048),
        ({"gradients": [(1, 40, 3)]}, 2048),
        ({"T": 4096}, 2048),
        ({"depth": 8192}, 2048),
        # Eight rounds of tiles, and nine.
        ({"T": 8448}, 2048),
        ({"T": 8704}, 0),
        ({"T": 16384}, 0),
    ],
    ids=str,
)
def test_the_product_takes_gradients_along(change: dict[str, Any], span: int, inner: int) -> None:
    choice = _C.select_extended_product(**{**BACKWARD, **change}, inner=inner)
    assert choice["path"] == "kernel"
    assert choice["gradients"] == {
        "path": "kernel",
        "possible": True,
        "reason": "among the base product's tiles",
        "counters": True,
        "span": span if inner > 0 else 0,
    }


@pytest.mark.parametrize(
    ("change", "span"),
    [
        ({"T": 16385}, 2048),
        ({"T": 18431}, 2048),
        # No more than eight.
        ({"T": 18432}, 4096),
        ({"T": 32768}, 4096),
        ({"depth": 8200}, 2048),
        ({"depth": 14336, "T": 4096}, 2048),
    ],
    ids=str,
)
def test_on_the_way_many_tokens_and_deep_tiles_take_spans(
    change: dict[str, Any], span: int
) -> None:
    # As do many rounds of tiles then.
    for width in (1024, 3584):
        product = {**BACKWARD, **change, "inner": 4, "width": width}
        gradients = _C.select_extended_product(**product)["gradients"]
        assert (gradients["path"], gradients["span"]) == ("kernel", span)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"T": 0}, "there are no tokens"),
        ({"by_depth": True}, "the weight's depth is contiguous"),
        ({"half": False}, "operands are not of 16 bits"),
        ({"aligned": False}, "rows are not 16-byte aligned"),
        ({"gradients": [(4, 1024, 257)]}, "a rank is larger than the tile has columns"),
        # The narrow tile.
        ({"T": 512, "gradients": [(4, 1024, 129)]}, "a rank is larger than the tile has columns"),
    ],
    ids=str,
)
def test_gradients_that_cannot_go_along(change: dict[str, Any], reason: str) -> None:
    gradients = _C.select_extended_product(**{**BACKWARD, **change})["gradients"]
    assert (gradients["path"], gradients["possible"]) == ("library", False)
    assert gradients["reason"] == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gradients": [(4, 1024, 64), (4, 1024, 72)], "inner": 4}, TOO_MANY_LATENTS),
        ({"T": 4088, "gradients": [(4, 1024, 72)]}, TOO_MANY_LATENTS),
        ({"T": 2049, "gradients": [(4, 1024, 72)]}, TOO_MANY_LATENTS),
        ({"T": 2048, "gradients": [(4, 1024, 136)]}, TOO_MANY_LATENTS),
        ({"T": 2048, "depth": 4088, "gradients": [(4, 1024, 72)]}, TOO_MANY_LATENTS),
        ({"T": 16385}, "long walks end unevenly"),
    ],
    ids=str,
)
def test_gradients_that_are_better_apart(change: dict[str, Any], reason: str) -> None:
    gradients = _C.select_extended_product(**{**BACKWARD, **change})["gradients"]
    assert gradients == {
        "path": "library",
        "possible": True,
        "reason": reason,
        "counters": False,
        "span": 0,
    }


@pytest.mark.parametrize("depth", [4096, 14336])
def test_beside_deep_tiles_of_few_tokens_twice_the_rank_goes_along(depth: int) -> None:
    change = {"T": 2048, "depth": depth, "gradients": [(4, 1024, 128)] * 2}
    choice = _C.select_extended_product(**{**BACKWARD, **change})
    assert (choice["path"], choice["gradients"]["path"]) == ("kernel", "kernel")


@pytest.mark.parametrize(("T", "rank"), [(512, 128), (1024, 256)])
def test_with_the_fewest_tokens_all_latents_that_fit_go_along(T: int, rank: int) -> None:
    change = {"T": T, "gradients": [(4, 1024, rank)] * 2}
    choice = _C.select_extended_product(**{**BACKWARD, **change})
    assert (choice["path"], choice["gradients"]["path"]) == ("kernel", "kernel")


def test_with_many_tokens_and_latents_that_are_there_all_that_fit_go_along() -> None:
    choice = _C.select_extended_product(**{**BACKWARD, "gradients": [(4, 1024, 256)] * 2})
    assert choice["gradients"]["path"] == "kernel"


@pytest.mark.parametrize(("T", "counters"), [(2048, False), (4096, True)])
def test_items_are_drawn_where_a_walk_is_long(T: int, counters: bool) -> None:
    assert _C.select_extended_product(**{**BACKWARD, "T": T})["gradients"]["counters"] is counters


def test_a_deep_product_takes_them_along_where_latents_are_there() -> None:
    choice = _C.select_extended_product(**{**BACKWARD, "depth": 14336})
    assert choice["gradients"]["path"] == "kernel"


def test_a_product_without_gradients_says_nothing_of_them() -> None:
    assert "gradients" not in _C.select_extended_product(**{**BACKWARD, "gradients": []})


def test_forced_to_the_kernels_of_9_0_gradients_go_along_at_any_number_of_tokens() -> None:
    with gralora.kernels.forced("sm90"):
        choice = _C.select_extended_product(**{**BACKWARD, "T": 1})
    assert (choice["path"], choice["gradients"]["path"]) == ("kernel", "kernel")


def test_more_gradients_than_a_call_has_are_refused() -> None:
    with pytest.raises(ValueError, match="a call has at most four gradients, got 5"):
        _C.select_extended_product(**{**BACKWARD, "gradients": [(1, 8, 8)] * 5})
