"""Names of the ways in which an adapter's factors can start."""

from __future__ import annotations

import re

KAIMING, GAUSSIAN, ORTHOGONAL, PISSA = "kaiming", "gaussian", "orthogonal", "pissa"
_ITERATIONS = re.compile(r"pissa_niter_(\d{1,3})")
ACCEPTED = '"kaiming", "gaussian", "orthogonal", "pissa" or "pissa_niter_N" with N from 0 to 999'


def check_init_weights(value: object, *, who: str) -> str:
    """Return `value` if it names a way to start.

    Raises:
        TypeError: not a string.
        ValueError: another name.

    """
    if not isinstance(value, str):
        raise TypeError(f"{who}: init_weights must be a str, got {value!r} ({ACCEPTED})")
    if value not in (KAIMING, GAUSSIAN, ORTHOGONAL, PISSA) and not _ITERATIONS.fullmatch(value):
        raise ValueError(f"{who}: init_weights must be {ACCEPTED}, got {value!r:.50}")
    return value


def is_pissa(init_weights: str) -> bool:
    """Whether the factors start as a part of the weight, which is taken out of it."""
    return init_weights.startswith(PISSA)


def power_iterations(init_weights: str) -> int | None:
    """N of ``"pissa_niter_N"``; None where the singular vectors are computed exactly."""
    found = _ITERATIONS.fullmatch(init_weights)
    return int(found[1]) if found else None
