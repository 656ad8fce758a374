"""PiSSA adapters on disk: their difference to the base they were made from, of twice the rank.

A PiSSA adapter alone says nothing about the base model, whose weights it changed. With the factors
``A0 B0`` that it started with,

    W' + scaling * A B = W + scaling * (A B - A0 B0) = W + scaling * [A  A0] [B  -B0]

so the file is a GraLoRA adapter of rank ``2 r`` with the same scale for the unmodified base, which
PEFT and everything here that reads adapters understand. A note in the tensors' metadata says that
the second half of every block's ranks is the start: whoever knows it can take ``A0 B0`` out of the
weights again and go on training at rank ``r``, with the very numbers that were saved.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gralora.injection.record import AdapterRecord
from gralora.nn.spec import AdapterSpec
from gralora.nn.starts import KAIMING, check_init_weights, is_pissa
from gralora.storage import config_values as values
from gralora.storage.config_values import WHO, take
from gralora.storage.scale import bake, whole
from gralora.storage.stored_config import StoredConfig
from gralora.storage.tensor_names import PREFIX, PRINCIPALS

_NOTE = "gralora_pissa"


def as_difference(record: AdapterRecord) -> AdapterRecord:
    """The adapter that a file has for one of a model; the same where it is no PiSSA adapter."""
    if not _pissa_targets(record):
        return record
    targets = {
        name: _doubled(spec) if is_pissa(spec.init_weights) else spec
        for name, spec in record.targets.items()
    }
    return dataclasses.replace(record, targets=targets)


def join(tensors: Mapping[str, Tensor], record: AdapterRecord) -> dict[str, Tensor]:
    """The file's tensors for a model's, by key.

    Args:
        tensors: of the adapter in the model, whole.
        record: the adapter's.

    """
    joined = dict(tensors)
    for name, spec in _pissa_targets(record).items():
        (key_A, start_A), (key_B, start_B) = _keys(name)
        A0, B0 = joined.pop(start_A), joined.pop(start_B)
        joined[key_A] = torch.cat([_columns(joined[key_A], spec), _columns(A0, spec)], 3).flatten(2)
        joined[key_B] = torch.cat([_rows(joined[key_B], spec), -_rows(B0, spec)], 2).flatten(1, 2)
    return joined


def split(tensors: Mapping[str, Tensor], record: AdapterRecord) -> dict[str, Tensor]:
    """The model's tensors for a file's; the inverse of :func:`join`."""
    parts = dict(tensors)
    for name, spec in _pissa_targets(record).items():
        (key_A, start_A), (key_B, start_B) = _keys(name)
        if key_A in parts:
            A, A0 = _columns(parts[key_A], spec).chunk(2, 3)
            parts[key_A], parts[start_A] = A.flatten(2), A0.flatten(2)
        if key_B in parts:
            B, B0 = _rows(parts[key_B], spec).chunk(2, 2)
            parts[key_B], parts[start_B] = B.flatten(1, 2), -B0.flatten(1, 2)
    return parts


def is_start(key: str) -> bool:
    """Whether a key of :func:`split` is that of a factor with which an adapter started."""
    return key.endswith(tuple(PRINCIPALS.values()))


def remember_start(record: AdapterRecord) -> dict[str, str]:
    """Metadata to save with an adapter: empty where it is no PiSSA adapter."""
    targets = _pissa_targets(record)
    if not targets:
        return {}
    first = next(iter(targets.values()))
    note = {
        "r": first.r,
        "alpha": whole(first.alpha),
        "use_rslora": first.use_rslora,
        "init_weights": first.init_weights,
        "rank_pattern": {name: spec.r for name, spec in targets.items() if spec.r != first.r},
        "alpha_pattern": {
            name: whole(spec.alpha) for name, spec in targets.items() if spec.alpha != first.alpha
        },
    }
    return {_NOTE: json.dumps(note, sort_keys=True)}


def restore_start(stored: StoredConfig, metadata: Mapping[str, str]) -> StoredConfig | None:
    """The config of the adapter as it was trained, or None where the file has no PiSSA adapter.

    Raises:
        ValueError: the note is damaged, or not that of the config.

    """
    if _NOTE not in metadata:
        return None
    note = _parse(metadata[_NOTE])
    own = dataclasses.replace(
        stored,
        r=take(note, "r", values.rank),
        alpha=take(note, "alpha", values.number),
        use_rslora=take(note, "use_rslora", values.flag),
        init_weights=take(note, "init_weights", _start),
        rank_pattern=take(note, "rank_pattern", values.pattern(values.rank)),
        alpha_pattern=take(note, "alpha_pattern", values.pattern(values.number)),
    )
    names = {*own.rank_pattern, *own.alpha_pattern, *stored.rank_pattern, *stored.alpha_pattern}
    for name in ("", *sorted(names)):
        r, alpha = _layer(own, name)
        rank, divisor = r + own.hybrid_r, 2 * r + own.hybrid_r
        scaling = alpha / (math.sqrt(rank) if own.use_rslora else rank)
        if stored.use_rslora or _layer(stored, name) != (2 * r, bake(scaling, divisor)):
            raise ValueError(
                f"{WHO}: {_NOTE} of the tensors must give half the config's rank and its scale, "
                f"got r={r}, alpha={alpha} with r, alpha={_layer(stored, name)} in the config"
            )
    return own


def halved(targets: Mapping[str, AdapterSpec], own: StoredConfig) -> dict[str, AdapterSpec]:
    """What the layers of a difference are as PiSSA adapters, for checks before they are made."""
    return {
        name: dataclasses.replace(spec, r=spec.r // 2, init_weights=own.init_weights)
        for name, spec in targets.items()
    }


def _doubled(spec: AdapterSpec) -> AdapterSpec:
    rank = 2 * spec.r + spec.hybrid_r
    alpha = bake(spec.scaling, rank)
    return dataclasses.replace(
        spec,
        r=2 * spec.r,
        alpha=alpha,
        use_rslora=False,
        scaling=alpha / rank,
        init_weights=KAIMING,
    )


def _pissa_targets(record: AdapterRecord) -> dict[str, AdapterSpec]:
    return {name: spec for name, spec in record.targets.items() if is_pissa(spec.init_weights)}


def _keys(name: str) -> list[tuple[str, str]]:
    return [(PREFIX + name + factor, PREFIX + name + start) for factor, start in PRINCIPALS.items()]


def _columns(A: Tensor, spec: AdapterSpec) -> Tensor:
    """``[k_in, n, k_out, s or 2 s]``."""
    return A.reshape(*A.shape[:2], spec.k_out, -1)


def _rows(B: Tensor, spec: AdapterSpec) -> Tensor:
    """``[k_out, k_in, s or 2 s, m]``."""
    return B.reshape(spec.k_out, spec.k_in, -1, B.shape[2])


def _layer(config: StoredConfig, name: str) -> tuple[int, float]:
    return config.rank_pattern.get(name, config.r), config.alpha_pattern.get(name, config.alpha)


def _parse(text: str) -> Mapping[str, Any]:
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise ValueError(f"{WHO}: {_NOTE} of the tensors must be a JSON object, got {text!r:.50}")
    return note


def _start(field: str, value: Any) -> str:
    if not isinstance(value, str) or not is_pissa(value):
        values.refuse(field, value, '"pissa" or "pissa_niter_N"')
    return check_init_weights(value, who=WHO)
