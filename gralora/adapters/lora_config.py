"""What the adapter_config.json of a LoRA says, once it is known to be nothing but LoRA."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gralora.adapters.kinds import LORA_TYPE
from gralora.adapters.lora_names import PatternReader
from gralora.config import Bias
from gralora.storage import config_values as values
from gralora.storage.config_values import WHO as READER
from gralora.storage.config_values import refuse, take

WHO = "import_lora"

# Each of these makes another function of the same two factors, or needs more than them.
_VARIANTS = {
    "alora_invocation_tokens": "aLoRA acts on some tokens only",
    "arrow_config": "Arrow mixes several adapters by a router",
    "corda_config": "CorDA replaced the base weights when it started",
    "kasa_config": "KaSA replaced the base weights when it started",
    "layer_replication": "the base model's layers are replicated",
    "lora_bias": "its LoRA has biases of its own",
    "lora_ga_config": "LoRA-GA replaced the base weights when it started",
    "loftq_config": "LoftQ replaced the base weights when it started",
    "monteclora_config": "MonteCLoRA samples its factors",
    "trainable_token_indices": "it trains rows of the embedding",
    "use_bdlora": "BD-LoRA stores only the blocks of its factors",
    "use_dora": "DoRA scales the rows of the adapted weight, which no sum with a matrix does",
    "use_qalora": "QA-LoRA pools its input",
    "velora_config": "VeLoRA changes how its activations are kept",
}
# Ways to start that leave the base model as it is.
_STARTS = ("gaussian", "eva", "mica", "orthogonal")
_KNOWN = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
        "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_config",
        "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
        "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters",
        "task_type", "use_rslora",
        *_VARIANTS,
    }
)  # fmt: skip


@dataclass(frozen=True)
class LoraConfig:
    """A checked config of a LoRA.

    Attributes:
        r: rank, where `ranks` has no other.
        alpha: numerator of the scale, where `alphas` has no other.
        ranks: of single layers.
        alphas: of single layers.
        use_rslora: whether the scale is ``alpha / sqrt(r)`` instead of ``alpha / r``.
        dropout: in [0, 1].
        bias: which biases are stored, in this package's terms.
        modules_to_save: ends of names of modules that are stored as a whole.
        target_parameters: names of fused parameters, or their ends.
        base_model_name_or_path: what the LoRA was trained on, where that was known.
        task_type: PEFT's.

    """

    r: int
    alpha: float
    ranks: PatternReader[int]
    alphas: PatternReader[float]
    use_rslora: bool
    dropout: float
    bias: Bias
    modules_to_save: tuple[str, ...]
    target_parameters: tuple[str, ...]
    base_model_name_or_path: str | None
    task_type: str | None

    def rank(self, name: str) -> int:
        """Rank of a layer."""
        return self.ranks.of(name, self.r)

    def scaling(self, name: str) -> float:
        """Scale of a layer."""
        rank = self.rank(name)
        return self.alphas.of(name, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def parse_lora_config(content: Mapping[str, Any]) -> LoraConfig:
    """Check a LoRA's config and translate it.

    Raises:
        ValueError: another method, a variant of LoRA, a missing field or a value out of range.

    Warns:
        UserWarning: an unknown field has a value.

    """
    kind = content.get("peft_type")
    if kind != LORA_TYPE:
        raise ValueError(f"{READER}: peft_type must be {LORA_TYPE!r}, got {kind!r:.50}")
    _check_variant(content)
    strange = sorted(name for name, value in content.items() if name not in _KNOWN and value)
    if strange:
        warnings.warn(
            f"{WHO}: the config has fields that are unknown here and were ignored: "
            f"{', '.join(f'{name!r:.50}' for name in strange)}",
            stacklevel=3,
        )
    return LoraConfig(
        r=take(content, "r", values.rank),
        alpha=take(content, "lora_alpha", values.number),
        ranks=_pattern(content, "rank_pattern", values.rank),
        alphas=_pattern(content, "alpha_pattern", values.number),
        use_rslora=take(content, "use_rslora", values.flag, False),
        dropout=take(content, "lora_dropout", values.probability, 0.0),
        bias=take(content, "bias", _bias, "none"),
        modules_to_save=take(content, "modules_to_save", values.module_names, ()),
        target_parameters=take(content, "target_parameters", values.module_names, ()),
        base_model_name_or_path=take(content, "base_model_name_or_path", values.text_or_none, None),
        task_type=take(content, "task_type", values.text_or_none, None),
    )


def _check_variant(content: Mapping[str, Any]) -> None:
    for field, why in _VARIANTS.items():
        if content.get(field):
            raise ValueError(f"{READER}: the adapter must be plain LoRA, got {field} ({why})")
    start = content.get("init_lora_weights")
    # PEFT does not mind the case of some of them.
    named = isinstance(start, str) and start.lower() in _STARTS
    if not named and start not in (True, False, None):
        raise ValueError(
            f"{READER}: the LoRA must belong to the base model as it is, got init_lora_weights="
            f"{start!r:.50}, which replaced the base weights (PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion gives the difference to the original ones)"
        )


def _pattern(content: Mapping[str, Any], field: str, check: Any) -> PatternReader[Any]:
    found = content.get(field) or {}
    if not isinstance(found, dict):
        refuse(field, found, "an object of layers' names")
    checked = {key: check(f"{field}[{key!r:.200}]", value) for key, value in found.items()}
    return PatternReader(checked, field=field, who=READER)


def _bias(field: str, value: Any) -> Bias:
    kinds: dict[str, Bias] = {"none": "none", "all": "all", "lora_only": "gralora_only"}
    if not isinstance(value, str) or value not in kinds:
        refuse(field, value, '"none", "all" or "lora_only"')
    return kinds[value]
