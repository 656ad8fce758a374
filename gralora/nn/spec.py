"""What an adapter is, apart from its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from keyword import iskeyword

from torch import nn

from gralora.nn.grid import Grid, resolve_grid
from gralora.nn.starts import KAIMING, check_init_weights

_RESERVED_NAMES = frozenset(dir(nn.ParameterDict()))


@dataclass(frozen=True)
class AdapterSpec:
    """Hyperparameters of one adapter.

    Attributes:
        r: rank that each output block sees, ``k_in * s``; PEFT's ``r`` for a square grid.
        k_out: output blocks.
        k_in: input blocks.
        alpha: numerator of the scale.
        hybrid_r: rank ``r0`` of the plain LoRA part, 0 without one.
        dropout: probability of dropping an element of the adapter's input while training.
        use_rslora: whether the scale is ``alpha / sqrt(r + r0)`` instead of ``alpha / (r + r0)``.
        scaling: the resulting factor. It never changes, so that compiled models need no recompile.
        init_weights: how the factors start, see :mod:`gralora.nn.initialisation`.

    """

    r: int
    k_out: int
    k_in: int
    alpha: float
    hybrid_r: int
    dropout: float
    use_rslora: bool
    scaling: float
    init_weights: str = KAIMING

    @property
    def s(self) -> int:
        """Rank of one block."""
        return self.r // self.k_in

    def __str__(self) -> str:
        """Keyword-like summary for ``extra_repr``."""
        k = str(self.k_in) if self.k_in == self.k_out else f"({self.k_out}, {self.k_in})"
        parts = [f"r={self.r}", f"k={k}", f"alpha={self.alpha:g}"]
        if self.hybrid_r:
            parts.append(f"hybrid_r={self.hybrid_r}")
        if self.dropout:
            parts.append(f"dropout={self.dropout:g}")
        if self.use_rslora:
            parts.append("use_rslora=True")
        if self.init_weights != KAIMING:
            parts.append(f"init_weights={self.init_weights}")
        return ", ".join(parts)


def check_int(who: str, name: str, value: object, least: int) -> None:
    """Raise unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{who}: {name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{who}: {name} must be at least {least}, got {name}={value}")


def _check_number(who: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{who}: {name} must be a number, got {value!r}")


def make_spec(
    in_features: int,
    out_features: int,
    *,
    r: int,
    k: Grid,
    alpha: float | None,
    hybrid_r: int,
    dropout: float,
    use_rslora: bool,
    init_weights: str = KAIMING,
    who: str = "GraLoRALinear",
) -> AdapterSpec:
    """Check an adapter's hyperparameters against a layer and derive the rest.

    Args:
        in_features: ``N`` of the layer.
        out_features: ``M`` of the layer.
        r: rank that each output block sees; a multiple of ``k_in``.
        k: the grid, see :func:`gralora.nn.grid.resolve_grid`.
        alpha: numerator of the scale; None means ``2 * r``.
        hybrid_r: rank of the plain LoRA part.
        dropout: in [0, 1].
        use_rslora: scale by the square root of the rank.
        init_weights: how the factors start.
        who: opens the error messages.

    Raises:
        TypeError: a value of the wrong kind.
        ValueError: a value out of range, or a grid that does not fit the layer.

    """
    check_int(who, "r", r, 1)
    check_int(who, "hybrid_r", hybrid_r, 0)
    alpha = 2 * r if alpha is None else alpha
    _check_number(who, "alpha", alpha)
    if not math.isfinite(alpha):
        raise ValueError(f"{who}: alpha must be finite, got alpha={alpha}")
    _check_number(who, "dropout", dropout)
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"{who}: dropout must lie in [0, 1], got dropout={dropout}")
    check_init_weights(init_weights, who=who)
    k_out, k_in = resolve_grid(k, in_features, out_features, r, who=who)
    rank = r + hybrid_r
    scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
    return AdapterSpec(
        r=r,
        k_out=k_out,
        k_in=k_in,
        alpha=alpha,
        hybrid_r=hybrid_r,
        dropout=float(dropout),
        use_rslora=bool(use_rslora),
        scaling=float(scaling),
        init_weights=init_weights,
    )


def check_adapter_name(name: object, *, who: str = "GraLoRALinear") -> str:
    """Return `name` if parameters can be stored and addressed under it.

    Raises:
        TypeError: not a string.
        ValueError: not a plain identifier, or an attribute of ``torch.nn.ParameterDict``.

    """
    if not isinstance(name, str):
        raise TypeError(f"{who}: an adapter name must be a str, got {name!r}")
    if not name.isidentifier() or iskeyword(name) or name in _RESERVED_NAMES:
        raise ValueError(
            f"{who}: an adapter name must be a plain identifier that is no attribute of "
            f"torch.nn.ParameterDict, got {name!r}"
        )
    return name
