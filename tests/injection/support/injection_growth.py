"""How much work a call is, counted rather than timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from injection_models import Block
from torch import nn


def experts(count: int) -> nn.Module:
    """A model with `count` numbered pairs of layers, ``experts.<number>.down`` and ``.up``."""
    return nn.ModuleDict({"experts": nn.ModuleList(Block() for _ in range(count))})


def calls_of(work: Callable[[], Any]) -> int:
    """Functions entered and generators resumed meanwhile, built-in ones too."""
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def grows_linearly(prepare: Callable[[nn.Module], Callable[[], Any]], size: int = 40) -> bool:
    """Whether four times as many layers are about four times the work of what `prepare` gives."""
    prepare(experts(2))()
    few, many = (calls_of(prepare(experts(count))) for count in (size, 4 * size))
    return many < 5 * few
