"""Whether a layer's weight is stored as ``[M, N]`` or, as by Conv1D, transposed.

The shapes decide, but for square layers. There the kind of model does: transformers has Conv1D in a
handful of old families only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gralora.checkpoints.paths import WHO

Layout = Literal["linear", "conv1d"]
LAYOUTS: tuple[Layout, ...] = ("linear", "conv1d")

# model_type of the config, and the last part of the name of each Conv1D in such models.
_CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D_NAMES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
# Whose fused experts transformers has as [experts, in, out].
_TRANSPOSED_EXPERTS = ("gpt_oss", "openai_privacy_filter")


def is_transposed(
    module: str,
    sizes: tuple[int, int],
    stored: tuple[int, ...],
    config: Mapping[str, Any] | None,
    layout: Layout | None,
) -> bool:
    """Whether the stored weight is ``[N, M]``.

    Args:
        module: name of the layer.
        sizes: ``(M, N)`` of the adapter.
        stored: shape in the checkpoint.
        config: of the base model.
        layout: what the caller says about square layers.

    Raises:
        ValueError: neither layout has that shape, or both have and nothing tells which it is.

    """
    out_features, in_features = sizes
    if stored not in ((out_features, in_features), (in_features, out_features)):
        raise ValueError(
            f"{WHO}: the adapter must fit the base model, got {module} with the weight "
            f"{list(stored)} for an adapter of [M, N] = [{out_features}, {in_features}]"
        )
    if out_features != in_features:
        return stored != (out_features, in_features)
    if layout is not None:
        return layout == "conv1d"
    known = _family(config)
    if known is None:
        raise ValueError(
            f"{WHO}: the layout of square weights must be known, got {module} with "
            f"{list(stored)} and no config.json that names a model of transformers or diffusers "
            '(pass layout="linear" for torch.nn.Linear, [out, in], or layout="conv1d" for '
            "Conv1D, [in, out])"
        )
    return known in _CONV1D_FAMILIES and module.rpartition(".")[2] in _CONV1D_NAMES


def _family(config: Mapping[str, Any] | None) -> str | None:
    """Kind of model whose layers are known; code that comes with a model may be anything."""
    if config is None or config.get("auto_map"):
        return None
    kind = config.get("model_type") or config.get("_class_name")
    return kind if isinstance(kind, str) else None


def are_experts_transposed(
    parameter: str,
    sizes: tuple[int, int, int],
    stored: tuple[int, ...],
    config: Mapping[str, Any] | None,
    layout: Layout | None,
) -> bool:
    """Whether a fused parameter is stored as ``[E, N, M]``.

    Args:
        parameter: its name.
        sizes: ``(E, M, N)`` of the adapter.
        stored: shape in the checkpoint.
        config: of the base model.
        layout: what the caller says about square matrices.

    Raises:
        ValueError: neither layout has that shape, or both have and nothing tells which it is.

    """
    experts, out_features, in_features = sizes
    if stored not in (sizes, (experts, in_features, out_features)):
        raise ValueError(
            f"{WHO}: the adapter must fit the base model, got {parameter} with {list(stored)} for "
            f"an adapter of [E, M, N] = {list(sizes)}"
        )
    if out_features != in_features:
        return stored != sizes
    if _family(config) in _TRANSPOSED_EXPERTS:
        return True
    if layout is not None:
        return layout == "conv1d"
    raise ValueError(
        f"{WHO}: the layout of square fused experts must be known, got {parameter} with "
        f'{list(stored)} (pass layout="linear" for [experts, out, in], or layout="conv1d" for '
        "[experts, in, out])"
    )
