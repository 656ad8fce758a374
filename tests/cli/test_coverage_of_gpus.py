"""`gralora info` knows which GPUs a build runs on."""

from __future__ import annotations

import pytest

from gralora.info import _covers


@pytest.mark.parametrize(
    ("architectures", "ptx", "capability", "covered"),
    [
        (["80", "90a"], ["80"], "8.0", True),
        (["80", "90a"], ["80"], "8.9", True),
        (["80", "90a"], ["80"], "9.0", True),
        (["80", "90a"], ["80"], "12.0", True),
        (["80"], [], "9.0", False),
        (["86"], [], "8.0", False),
        (["90a"], [], "9.0", True),
        (["90a"], [], "10.0", False),
        ([], ["80"], "9.0", True),
        ([], ["90"], "8.0", False),
        (["native"], [], "9.0", True),
    ],
)
def test_covers(architectures: list[str], ptx: list[str], capability: str, covered: bool) -> None:
    assert _covers(architectures, ptx, capability) is covered
