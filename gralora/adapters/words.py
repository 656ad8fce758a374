"""Grids, ranks and sizes as messages and tables say them."""

from __future__ import annotations

from gralora.nn.spec import AdapterSpec

_UNITS = ("kB", "MB", "GB", "TB")


def by(rows: int, columns: int) -> str:
    """``"2 x 4"``."""
    return f"{rows} x {columns}"


def grid(spec: AdapterSpec) -> str:
    """Blocks per axis: ``"4"``, or ``"2 x 4"`` where output and input differ."""
    return str(spec.k_in) if spec.k_in == spec.k_out else by(spec.k_out, spec.k_in)


def rank(spec: AdapterSpec) -> str:
    """The rank, ``"32"``, or with that of a hybrid's plain part ``"32 + 8"``."""
    return f"{spec.r} + {spec.hybrid_r}" if spec.hybrid_r else str(spec.r)


def size(count: int) -> str:
    """Bytes in the unit that keeps them readable: ``"512 bytes"``, ``"1.2 MB"``, ``"45.6 GB"``."""
    if count < 1000:
        return f"{count} bytes"
    value, units = count / 1000, iter(_UNITS)
    unit = next(units)
    # What would be printed as 1000.0 is 1.0 of the next unit.
    while value >= 999.95 and unit != _UNITS[-1]:
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}"
