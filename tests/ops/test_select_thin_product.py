"""When a base product of few tokens takes the adapter's term along."""

from __future__ import annotations

from typing import Any

import pytest

import gralora.kernels
from gralora import _C
from gralora.explain import explain

PRODUCT: dict[str, Any] = {"T": 16, "depth": 4096, "width": 1024, "blocks": 4}


@pytest.mark.parametrize(
    ("change", "columns", "splits"),
    [
        # 256 slices of 16 columns, two for each of 132 multiprocessors at most.
        ({}, 16, 1),
        ({"T": 1}, 16, 1),
        ({"width": 1056}, 16, 1),
        ({"width": 1064}, 64, 2),
        ({"processors": 64}, 64, 1),
        # 64 slices and 16, whose walks several CTAs share.
        ({"width": 256}, 16, 2),
        ({"width": 64}, 16, 4),
        # Of 128 columns, since the depth lies along rows.
        ({"by_depth": False}, 128, 4),
        ({"by_depth": False, "width": 256}, 128, 8),
        ({"by_depth": False, "width": 3584}, 128, 1),
        # Few CTAs, that have little to read.
        ({"width": 144, "depth": 576}, 16, 1),
        # Too short a walk to be split, and a chip that cannot.
        ({"width": 256, "depth": 1024}, 16, 1),
        ({"width": 256, "cluster": 1}, 16, 1),
    ],
    ids=str,
)
def test_few_tokens_take_it(change: dict[str, Any], columns: int, splits: int) -> None:
    choice = _C.select_thin_product(**{**PRODUCT, **change})
    assert choice["path"] == "kernel"
    assert (choice["tile"], choice["splits"]) == ((16, columns), splits)


@pytest.mark.parametrize(
    ("change", "possible", "reason"),
    [
        ({"T": 0}, False, "there are no tokens"),
        ({"T": 17}, True, "more than 16 tokens"),
        # 32 CTAs of 1 MiB each, where none share a walk.
        ({"by_depth": False, "cluster": 1}, True, "too few blocks to read the weight fast"),
        ({"processors": 108, "cluster": 1}, True, "too few blocks to read the weight fast"),
        ({"half": False}, False, "operands are not of 16 bits"),
        ({"drops": True}, False, "dropout acts on the adapter's part alone"),
        ({"width": 1020}, False, "the block width is not a multiple of 8"),
        ({"aligned": False}, False, "rows are not 16-byte aligned"),
        ({"depth": 2**30 + 1}, False, "an axis is longer than 2^30"),
    ],
    ids=str,
)
def test_what_does_not(change: dict[str, Any], possible: bool, reason: str) -> None:
    choice = _C.select_thin_product(**{**PRODUCT, **change})
    assert (choice["path"], choice["possible"], choice["reason"]) == ("library", possible, reason)


@pytest.mark.parametrize("path", ["aten", "sm80", "sm90"])
def test_a_forced_path_does_without(path: Any) -> None:
    with gralora.kernels.forced(path):
        choice = _C.select_thin_product(**PRODUCT)
    assert (choice["path"], choice["reason"]) == ("library", "another path is forced")


@pytest.mark.parametrize(
    ("change", "together"),
    [
        ({"by_depth": False, "gradients": [(4, 1024, 64)]}, True),
        # A forward pass has none.
        ({"by_depth": True, "gradients": [(4, 1024, 64)]}, False),
        ({"by_depth": False}, None),
    ],
    ids=str,
)
def test_gradients_share_its_launch(change: dict[str, Any], together: bool | None) -> None:
    assert _C.select_thin_product(**{**PRODUCT, **change}).get("together") == together


def test_explain_names_it() -> None:
    steps = explain(16, 4096, 4096, 64, 4, processors=132, cluster=8, sm90=True)
    assert [step["step"] for step in steps] == [
        "H = x A", "y = x W^T + H B", "G = dy B^T, dB", "dx = dy W + G A^T, dA",
    ]  # fmt: skip
    dropped = explain(16, 4096, 4096, 64, 4, processors=132, cluster=8, sm90=True, dropout=True)
    assert [step["step"] for step in dropped] == [
        "H = x A", "y = x W^T + H B", "G = dy B^T, dB", "dx = G A^T, dA",
    ]  # fmt: skip
