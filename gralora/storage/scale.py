"""The alpha that makes PEFT's ``alpha / (r + r0)`` a given scale."""

from __future__ import annotations

import math


def whole(number: float) -> float:
    """The number, as an int where it is one."""
    return int(number) if float(number).is_integer() else number


def bake(scaling: float, rank: int) -> float:
    """The alpha whose quotient by `rank` is `scaling`, an int where it is whole.

    For some pairs no float hits the scale; the quotient is then off by one rounding.
    """
    near = scaling * rank
    for alpha in (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)):
        if alpha / rank == scaling:
            return whole(alpha)
    return whole(near)
