"""When a base product of few tokens takes the adapter's term along."""

from __future__ import annotations

from typing import Any

import pytest

import gralora.kernels
from gralora import _C
from gralora.explain import explain

PRODUCT: dict[str, Any] = {"T": 16, "depth": 4096, "width": 1024, "blocks": 4}


@pytest.mark.parametrize(
    ("change", "splits"),
    [
        # 128 slices of 32 columns, for 132 multiprocessors with two CTAs each.
        ({}, 2),
        ({"width": 3584}, 1),
        ({"width": 256}, 4),
        # Of 64 columns, since the depth lies along rows.
        ({"by_depth": False}, 4),
        # Too short a walk to be split, and a chip that cannot.
        ({"depth": 1024}, 1),
        ({"cluster": 1}, 1),
        ({"processors": 16}, 1),
        ({"T": 1}, 2),
    ],
    ids=str,
)
def test_few_tokens_take_it(change: dict[str, Any], splits: int) -> None:
    choice = _C.select_thin_product(**{**PRODUCT, **change})
    assert (choice["path"], choice["splits"]) == ("kernel", splits)


@pytest.mark.parametrize(
    ("change", "possible", "reason"),
    [
        ({"T": 17}, True, "more than 16 tokens"),
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


@pytest.mark.parametrize(("gradients", "together"), [([(4, 1024, 64)], True), ([], None)])
def test_gradients_share_its_launch(gradients: list[Any], together: bool | None) -> None:
    choice = _C.select_thin_product(**PRODUCT, by_depth=False, gradients=gradients)
    assert choice.get("together") == together


def test_explain_names_it() -> None:
    steps = explain(16, 4096, 4096, 64, 4, processors=132, cluster=8, sm90=True)
    assert [step["step"] for step in steps] == [
        "H = x A", "y = x W^T + H B", "G = dy B^T, dB", "dx = dy W + G A^T, dA",
    ]  # fmt: skip
    dropped = explain(16, 4096, 4096, 64, 4, processors=132, cluster=8, sm90=True, dropout=True)
    assert [step["step"] for step in dropped] == [
        "H = x A", "y = x W^T + H B", "G = dy B^T, dB", "dx = G A^T, dA",
    ]  # fmt: skip
