"""What to adapt and how: the configuration of one adapter of a whole model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from gralora.injection.patterns import compile_layers, parse_key
from gralora.nn.grid import Grid
from gralora.nn.spec import check_int, make_spec
from gralora.nn.starts import KAIMING, check_init_weights

WHO = "GraLoRAConfig"
ALL_LINEAR = "all-linear"

Bias = Literal["none", "all", "gralora_only"]
_BIASES = ("none", "all", "gralora_only")
# Settings that are names alone, where others may be an expression too.
_SEQUENCES = ("modules_to_save", "target_parameters")


@dataclass(frozen=True)
class GraLoRAConfig:
    """Settings of one adapter for :func:`gralora.inject`.

    Names and meanings are PEFT's ``GraloraConfig``'s and, for the patterns, its ``LoraConfig``'s;
    ``k`` is PEFT's ``gralora_k`` and ``dropout`` its ``gralora_dropout``. Sequences are kept as
    tuples and mappings are copied.

    Attributes:
        r: rank that each output block sees; a multiple of ``k_in``.
        k: blocks per axis, a pair ``(k_out, k_in)``, or ``"auto"`` for the paper's rule among the
            grids that fit each layer.
        alpha: the adapter is scaled by ``alpha / (r + hybrid_r)``; None means twice the layer's r.
        target_modules: which layers to adapt: names or endings of names (``"q_proj"`` is every
            ``….q_proj``), one regular expression that the full name must match as a whole, or
            ``"all-linear"``, every linear layer but the output head.
        target_parameters: fused experts to adapt, one adapter for each expert: names or endings of
            names of parameters with three dimensions (``"experts.gate_up_proj"``). With them,
            `target_modules` may be empty.
        exclude_modules: layers and parameters that are left out, given as `target_modules` are.
        layers_to_transform: only layers with these indices, for every kind of `target_modules`.
        layers_pattern: name of the list that the indices count, such as ``"layers"``; None takes
            the first number in a name.
        hybrid_r: rank of an additional plain LoRA part.
        dropout: probability of dropping an element of the adapters' input while training.
        use_rslora: scale by ``alpha / sqrt(r + hybrid_r)`` instead.
        bias: which biases train: ``"none"``, those of the adapted layers (``"gralora_only"``) or
            ``"all"`` of the model. They stay as trained while the adapter is inactive.
        modules_to_save: endings of names of modules that are trained as a whole, as copies.
        rank_pattern: r of single layers. A key is a full name, or a regular expression for the end
            of one from a dot on; a full name wins, then the first match.
        alpha_pattern: alpha of single layers, likewise.
        k_pattern: k of single layers, likewise.
        base_model_name_or_path: where the adapted model comes from; kept for the saved adapter.
        task_type: PEFT's; with ``"SEQ_CLS"`` and ``"TOKEN_CLS"`` modules whose names end in
            ``classifier`` or ``score``, with ``"QUESTION_ANS"`` in ``qa_outputs``, are saved too.
        init_weights: how the factors start: ``"kaiming"`` as PEFT's GraLoRA, ``"gaussian"``,
            ``"orthogonal"``, ``"pissa"`` (each block's largest singular triplets, which the frozen
            weight then lacks) or ``"pissa_niter_N"``, the same by N power iterations on random
            directions. See docs/initialisations.md.

    Raises:
        TypeError: a value of the wrong kind.
        ValueError: a value out of range, or a pattern that is no regular expression.

    """

    r: int = 32
    k: Grid = 2
    alpha: float | None = None
    target_modules: str | Sequence[str] = ALL_LINEAR
    exclude_modules: str | Sequence[str] | None = None
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    hybrid_r: int = 0
    dropout: float = 0.0
    use_rslora: bool = False
    bias: Bias = "none"
    modules_to_save: Sequence[str] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    k_pattern: Mapping[str, Grid] = field(default_factory=dict)
    base_model_name_or_path: str | None = None
    task_type: str | None = None
    init_weights: str = KAIMING
    target_parameters: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Bring every value into its one form, and check it."""
        self._set("k", _as_grid(self.k))
        self._set("target_modules", _as_names("target_modules", self.target_modules))
        self._set_sequence("target_parameters")
        if not self.target_modules and not self.target_parameters:
            raise ValueError(
                f"{WHO}: target_modules must name at least one module, got {self.target_modules!r} "
                f'(names, a regular expression or "{ALL_LINEAR}"; none beside target_parameters)'
            )
        for name in ("exclude_modules", "layers_pattern"):
            if getattr(self, name) is not None:
                self._set(name, _as_names(name, getattr(self, name)))
        self._set_sequence("modules_to_save")
        self._set("layers_to_transform", _as_indices(self.layers_to_transform))
        for name in ("rank_pattern", "alpha_pattern", "k_pattern"):
            self._set(name, _as_patterns(name, getattr(self, name)))
        self._set("k_pattern", {key: _as_grid(k) for key, k in self.k_pattern.items()})
        self._set("task_type", _as_text("task_type", self.task_type))
        _as_text("base_model_name_or_path", self.base_model_name_or_path)
        self._check_numbers()
        self._check_patterns()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _set_sequence(self, name: str) -> None:
        """Bring a setting into its form that is names, never an expression, or None."""
        value = getattr(self, name)
        if isinstance(value, str):
            raise TypeError(
                f"{WHO}: {name} must be a sequence of str, got {value!r} (write [{value!r}])"
            )
        if value is not None:
            self._set(name, _as_names(name, value))

    def _check_numbers(self) -> None:
        if not isinstance(self.use_rslora, bool):
            raise TypeError(f"{WHO}: use_rslora must be a bool, got {self.use_rslora!r}")
        if self.bias not in _BIASES:
            raise ValueError(f"{WHO}: bias must be one of {', '.join(_BIASES)}, got {self.bias!r}")
        check_init_weights(self.init_weights, who=WHO)
        _check_layer(self.r, self.k, self.alpha, self.hybrid_r, self.dropout)
        for key, r in self.rank_pattern.items():
            check_int(f"{WHO}: rank_pattern[{key!r}]", "r", r, 1)
        for alpha in self.alpha_pattern.values():
            if alpha is None:
                raise TypeError(f"{WHO}: alpha_pattern must hold numbers, got {alpha!r}")
            _check_layer(1, 1, alpha, 0, 0.0)
        for k in self.k_pattern.values():
            _check_layer(1 if k == "auto" else _blocks_in(k), k, None, 0, 0.0)

    def _check_patterns(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str):
                _check_expression(name, value, re.compile)
        patterns = self.layers_pattern or ()
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            _check_expression("layers_pattern", pattern, compile_layers)
        for name in ("rank_pattern", "alpha_pattern", "k_pattern"):
            for key in getattr(self, name):
                _check_expression(name, key, parse_key)


def _check_expression(name: str, expression: str, compiled: Callable[[str], object]) -> None:
    try:
        compiled(expression)
    except re.error as error:
        raise ValueError(
            f"{WHO}: {name} must be a regular expression, got {expression!r} ({error})"
        ) from None


def _check_layer(r: object, k: Any, alpha: Any, hybrid_r: Any, dropout: Any) -> None:
    """Check what can be checked without a layer."""
    # Zero is a multiple of every grid: whether the real widths are is known when a layer is.
    make_spec(
        0,
        0,
        r=r,  # type: ignore[arg-type]
        k=1 if k == "auto" else k,
        alpha=alpha,
        hybrid_r=hybrid_r,
        dropout=dropout,
        use_rslora=False,
        who=WHO,
    )


def _blocks_in(k: Any) -> Any:
    """A rank that fits the grid `k`, whatever is wrong with it otherwise."""
    k_in = k[1] if isinstance(k, tuple) and len(k) == 2 else k
    return k_in if isinstance(k_in, int) and k_in > 0 else 1


def _as_grid(k: Any) -> Any:
    return tuple(k) if isinstance(k, list) else k


def _as_names(name: str, value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, Collection) or not all(isinstance(entry, str) for entry in value):
        kinds = "a sequence of str" if name in _SEQUENCES else "a str or a sequence of str"
        raise TypeError(f"{WHO}: {name} must be {kinds}, got {value!r}")
    if not all(value):
        raise ValueError(f"{WHO}: {name} must hold no empty name, got {value!r}")
    # A set has no order of its own, and files and messages want one.
    entries = sorted(value) if isinstance(value, (set, frozenset)) else value
    return tuple(dict.fromkeys(entries))


def _as_indices(value: object) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    indices = tuple(value) if isinstance(value, (list, tuple, range, set, frozenset)) else (value,)
    for index in indices:
        check_int(WHO, "layers_to_transform", index, 0)
    return value if isinstance(value, int) else tuple(sorted(set(indices)))


def _as_patterns(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{WHO}: {name} must be a mapping with str keys, got {value!r}")
    return dict(value)


def _as_text(name: str, value: object) -> str | None:
    # PEFT's TaskType is an enumeration of str.
    text = value.value if isinstance(value, Enum) else value
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{WHO}: {name} must be a str or None, got {value!r}")
    return text
