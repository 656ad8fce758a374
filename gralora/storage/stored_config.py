"""What an adapter_config.json says, once it is known to be one of the three kinds read here.

- ``peft_type: "GRALORA"``, PEFT's own;
- the same with ``gralora_alpha``: the fork of the method's authors, where ``r`` is the total rank
  and the scale ``gralora_alpha / r``;
- ``peft_type: "GRALORA_EXT"``: written here for adapters that PEFT cannot reproduce.

Regular expressions of a file are kept as text and never run: one of them can take forever.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from gralora.config import Bias
from gralora.nn.starts import KAIMING
from gralora.storage import config_values as values
from gralora.storage.config_values import WHO, refuse, take

PEFT_TYPE = "GRALORA"
EXTENDED_TYPE = "GRALORA_EXT"

_EXTENSIONS = frozenset(
    {"rank_pattern", "alpha_pattern", "k_pattern", "target_parameters", "use_rslora"}
)
_MEANING = frozenset(
    {
        "peft_type", "r", "hybrid_r", "alpha", "gralora_alpha", "gralora_dropout", "gralora_k",
        "target_modules", "bias", "fan_in_fan_out", "modules_to_save", "layers_to_transform",
        "layers_pattern", *_EXTENSIONS,
    }
)  # fmt: skip
_NOTES = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "init_weights",
        "peft_version", "revision", "runtime_config", "task_type",
    }
)  # fmt: skip
# Fields of PEFT's other methods: with a value, each makes another model of the same tensors.
_CHANGES_THE_RESULT = frozenset(
    {
        "alora_invocation_tokens", "arrow_config", "exclude_modules", "layer_replication",
        "lora_alpha", "trainable_token_indices", "use_dora", "use_qalora",
        *_EXTENSIONS,
    }
)  # fmt: skip


@dataclass(frozen=True)
class StoredConfig:
    """A checked config file, in this package's terms.

    Attributes:
        r: GraLoRA part's rank, per output block.
        hybrid_r: rank of the plain part.
        k: ``(k_out, k_in)``.
        alpha: numerator of the scale, ``alpha / (r + hybrid_r)``.
        dropout: in [0, 1].
        bias: which biases are stored.
        target_modules: regular expression, or ends of module names.
        modules_to_save: ends of module names.
        layers_to_transform: layer numbers that a list of targets is restricted to.
        layers_pattern: names of the lists that hold those layers.
        use_rslora: whether the scale is ``alpha / sqrt(r + hybrid_r)``.
        rank_pattern: ranks by full module name.
        alpha_pattern: alphas by full module name.
        k_pattern: grids by full module name.
        target_parameters: full names of fused experts, those of one module in its own order.
        init_weights: how the factors started, where it decides what the base weights are.
        base_model_name_or_path: what the adapter was trained on, where that was known.
        task_type: PEFT's.

    """

    r: int
    hybrid_r: int
    k: tuple[int, int]
    alpha: float
    dropout: float
    bias: Bias
    target_modules: str | tuple[str, ...]
    modules_to_save: tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    base_model_name_or_path: str | None
    task_type: str | None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    k_pattern: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    init_weights: str = KAIMING


def parse_config(content: Mapping[str, Any]) -> StoredConfig:
    """Check an adapter's config and translate it.

    Raises:
        ValueError: another method's config, a missing field, a value out of range, or a field that
            changes the result in a way unknown here.

    Warns:
        UserWarning: an unknown field has a value.

    """
    kind = content.get("peft_type")
    if kind not in (PEFT_TYPE, EXTENDED_TYPE):
        _refuse_kind(kind)
    extended = kind == EXTENDED_TYPE
    _check_unknown(content, extended)
    r, hybrid_r, alpha = _ranks(content)
    k = take(content, "gralora_k", values.grid)
    if not extended and k[0] != k[1]:
        refuse("gralora_k", content["gralora_k"], "an int")
    take(content, "fan_in_fan_out", values.flag, False)
    # Another way to start would have changed the base weights too.
    take(content, "init_weights", values.flag, True)
    extensions: dict[str, Any] = {}
    targets = values.targets
    if extended:
        extensions = {
            "use_rslora": take(content, "use_rslora", values.flag, False),
            "rank_pattern": take(content, "rank_pattern", values.pattern(values.rank), {}),
            "alpha_pattern": take(content, "alpha_pattern", values.pattern(values.number), {}),
            "k_pattern": take(content, "k_pattern", values.pattern(values.grid), {}),
            "target_parameters": take(content, "target_parameters", values.module_names, ()),
        }
        if extensions["target_parameters"]:
            targets = values.targets_or_none
    return StoredConfig(
        r=r,
        hybrid_r=hybrid_r,
        k=k,
        alpha=alpha,
        dropout=take(content, "gralora_dropout", values.probability, 0.0),
        bias=take(content, "bias", _bias, "none"),
        target_modules=take(content, "target_modules", targets),
        modules_to_save=take(content, "modules_to_save", values.module_names, ()),
        layers_to_transform=take(content, "layers_to_transform", values.layer_indexes, None),
        layers_pattern=take(content, "layers_pattern", values.layer_patterns, ()),
        base_model_name_or_path=take(content, "base_model_name_or_path", values.text_or_none, None),
        task_type=take(content, "task_type", values.text_or_none, None),
        **extensions,
    )


def digest(content: Mapping[str, Any]) -> str:
    """Fingerprint of the fields that decide what the tensors mean, as 64 hexadecimal digits.

    The order of names, fields that are null, and notes such as the base model's name do not count.
    """
    meaning: dict[str, Any] = {}
    for name in sorted(_MEANING & content.keys()):
        value = content[name]
        if name in ("target_modules", "modules_to_save") and isinstance(value, list):
            value = sorted(value, key=json.dumps)
        if value is not None:
            meaning[name] = value
    blob = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(blob.encode()).hexdigest()


def _refuse_kind(kind: object) -> None:
    way_out = ""
    if kind == "LORA":
        way_out = "; peft.PeftModel.from_pretrained loads a LoRA adapter"
    raise ValueError(
        f"{WHO}: peft_type must be {PEFT_TYPE!r} or {EXTENDED_TYPE!r}, got {kind!r:.50}{way_out}"
    )


def _check_unknown(content: Mapping[str, Any], extended: bool) -> None:
    known = _MEANING | _NOTES if extended else (_MEANING | _NOTES) - _EXTENSIONS
    strange = {name: value for name, value in content.items() if name not in known and value}
    for name in sorted(strange.keys() & _CHANGES_THE_RESULT):
        refuse(name, strange[name], "absent or null, since it would change the result")
    if strange:
        warnings.warn(
            f"{WHO}: the config has fields that are unknown here and were ignored: "
            f"{', '.join(f'{name!r:.50}' for name in sorted(strange))}",
            stacklevel=2,
        )


def _ranks(content: Mapping[str, Any]) -> tuple[int, int, float]:
    """``(r, hybrid_r, alpha)`` in PEFT's meaning, also from the fork's total rank."""
    r = take(content, "r", values.rank)
    hybrid_r = take(content, "hybrid_r", values.rank_or_zero, 0)
    if content.get("gralora_alpha") is None:
        return r, hybrid_r, take(content, "alpha", values.number)
    if content.get("alpha") is not None:
        raise ValueError(
            f"{WHO}: the config must have alpha (PEFT) or gralora_alpha (the authors' fork), "
            f"got both: alpha={content['alpha']!r:.50}, "
            f"gralora_alpha={content['gralora_alpha']!r:.50}"
        )
    if hybrid_r >= r:
        raise ValueError(
            f"{WHO}: with gralora_alpha, r is the total rank and must exceed hybrid_r, "
            f"got r={r}, hybrid_r={hybrid_r}"
        )
    return r - hybrid_r, hybrid_r, take(content, "gralora_alpha", values.number)


def _bias(name: str, value: Any) -> Bias:
    if value not in ("none", "all", "gralora_only"):
        refuse(name, value, '"none", "all" or "gralora_only"')
    return cast(Bias, value)
