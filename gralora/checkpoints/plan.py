"""What becomes of every tensor of a checkpoint, decided before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from gralora.adapters.stored import StoredAdapter
from gralora.checkpoints.copies import check_copies
from gralora.checkpoints.coverage import check_coverage
from gralora.checkpoints.folder import Checkpoint
from gralora.checkpoints.layout import Layout
from gralora.checkpoints.matrices import find_matrices
from gralora.checkpoints.names import Renaming
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.quantised import COMPUTED, check_dtype, check_merged, check_replaced
from gralora.checkpoints.tensor_plan import Addition, Replacement, TensorPlan
from gralora.checkpoints.tied import Tying, check_targets, settle_head
from gralora.injection.listing import some
from gralora.storage.checked_file import Entry


@dataclass
class MergePlan:
    """The whole of it.

    Attributes:
        shards: by name of the shard, its tensors in the order in which they are written.
        renamings: for each adapter.
        added: tensors that the base lacks.
        untied: whether the merged model's output head is no longer tied to its embedding.

    """

    shards: dict[str, list[TensorPlan]] = field(default_factory=dict)
    renamings: list[Renaming] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    untied: bool = False

    @property
    def tensors(self) -> list[TensorPlan]:
        """All of them."""
        return [plan for plans in self.shards.values() for plan in plans]


def make_plan(
    base: Checkpoint,
    adapters: Sequence[tuple[StoredAdapter, float]],
    *,
    dtype: torch.dtype | None,
    layout: Layout | None,
) -> MergePlan:
    """Say what becomes of each tensor.

    Args:
        base: checked.
        adapters: with their weights, at least one.
        dtype: of all floating tensors, or None for their own.
        layout: of square weights, where the base does not tell.

    Raises:
        OSError: a tensor that an adapter has a copy of cannot be read.
        TypeError: a quantised weight to merge into or to replace, or a dtype for a quantised model.
        ValueError: an adapter that does not fit the base, or the others.

    """
    tensors = base.tensors
    if dtype is not None:
        check_dtype(base, dtype)
    tying = Tying.of(base.config, tensors)
    result = MergePlan()
    additions: dict[str, list[Addition]] = {}
    replacements: dict[str, list[Replacement]] = {}
    for place, (adapter, weight) in enumerate(adapters):
        check_targets(tying, adapter)
        renaming, matrices = find_matrices(adapter, tensors)
        result.renamings.append(renaming)
        check_coverage(adapter, renaming, tensors, base.config)
        check_copies(base, adapter, renaming, tying)
        for matrix in matrices:
            key = matrix.key(renaming)
            entry = tensors[key]
            check_merged(key, entry)
            transposed = matrix.is_transposed(entry, base.config, layout)
            addition = Addition(place, matrix.module, matrix.layer, weight, transposed)
            additions.setdefault(key, []).append(addition)
        trained, untied = settle_head(tying, {**adapter.biases, **adapter.saved}, adapter)
        result.untied |= untied
        for name, value in trained.items():
            change = Replacement(place, name, value, weight)
            key = renaming.of_tensor(name, tensors)
            replacements.setdefault(key, []).append(change)
    _check_apart(additions, replacements)
    for shard in base.shards:
        result.shards[shard.name] = [
            _plan(key, entry, dtype, additions.get(key, []), replacements.get(key, []))
            for key, entry in shard.header.tensors.items()
        ]
    new = {key: changes for key, changes in replacements.items() if key not in tensors}
    _check_places(new, tensors)
    _add(result, new, dtype or _usual_dtype(tensors), base.shards[-1].name)
    return result


def _check_apart(
    additions: Mapping[str, Sequence[Addition]], replacements: Mapping[str, Sequence[Replacement]]
) -> None:
    both = sorted(additions.keys() & replacements.keys())
    if both:
        raise ValueError(
            f"{WHO}: no adapter may save a weight as a whole that another one adapts, got "
            f"{some(both)}"
        )


def _plan(
    key: str,
    entry: Entry,
    dtype: torch.dtype | None,
    additions: Sequence[Addition],
    replacements: Sequence[Replacement],
) -> TensorPlan:
    wanted = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
    for change in replacements:
        _check_replacement(key, entry, change, alone=len(replacements) == 1)
    return TensorPlan(key, entry, entry.shape, wanted, tuple(additions), tuple(replacements))


def _check_replacement(key: str, entry: Entry, change: Replacement, *, alone: bool) -> None:
    if tuple(change.value.shape) != entry.shape:
        raise ValueError(
            f"{WHO}: {change.name} of the adapter must have the base's shape {list(entry.shape)}, "
            f"got {list(change.value.shape)} (a model whose vocabulary was resized has to be "
            "merged in memory, with gralora.merge_and_unload)"
        )
    check_replaced(key, entry)
    floating = entry.dtype.is_floating_point and change.value.is_floating_point()
    if not floating and not (alone and change.weight == 1 and entry.dtype == change.value.dtype):
        raise TypeError(
            f"{WHO}: {some([key])} cannot be added up, got {entry.dtype} in the base and "
            f"{change.value.dtype} in the adapter (only one adapter may have it, with weight 1)"
        )


def _check_places(new: Collection[str], keys: Collection[str]) -> None:
    """Refuse to add to a layer of the base what it must have already, under another name.

    What is really new, such as the head of a classifier, is in no layer that has a number.
    """
    layers = {layer for key in keys for layer in _layers_of(key)}
    lost = sorted(key for key in new if not layers.isdisjoint(_layers_of(key)))
    if lost:
        raise ValueError(
            f"{WHO}: what was trained as a whole of a layer that the base has must be there too, "
            f"got {some(lost)}, which the base lacks or has under another name (merge in memory, "
            "with gralora.merge_and_unload)"
        )


def _layers_of(key: str) -> Iterator[str]:
    """Its prefixes that end in a number: the layers that it is part of."""
    owners = accumulate(key.split(".")[:-1], lambda owner, part: f"{owner}.{part}")
    return (owner for owner in owners if owner.rpartition(".")[2].isdigit())


def _add(
    result: MergePlan,
    new: Mapping[str, Sequence[Replacement]],
    dtype: torch.dtype,
    shard: str,
) -> None:
    """Plan tensors that the base lacks, such as the head of a classifier."""
    if not new:
        return
    if any(renaming.changes for renaming in result.renamings):
        raise ValueError(
            f"{WHO}: tensors can only be added to a base that has the model's own names, got "
            f"{some(sorted(new))} and names with another prefix (merge in memory, with "
            "gralora.merge_and_unload)"
        )
    for key, changes in sorted(new.items()):
        if len(changes) > 1 or changes[0].weight != 1:
            raise ValueError(
                f"{WHO}: what the base lacks must come from one adapter with weight 1, got "
                f"{some([key])} from {len(changes)} with "
                f"{', '.join(f'{c.weight:g}' for c in changes)}"
            )
        value: Tensor = changes[0].value
        wanted = dtype if value.is_floating_point() else value.dtype
        plan = TensorPlan(key, None, tuple(value.shape), wanted, (), tuple(changes))
        result.shards[shard].append(plan)
        result.added.append(key)


def _usual_dtype(tensors: Mapping[str, Entry]) -> torch.dtype:
    """The dtype to compute in that most bytes of the base have."""
    sizes: dict[torch.dtype, int] = {torch.float32: 0}
    for entry in tensors.values():
        if entry.dtype in COMPUTED:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.start
    return max(sizes, key=lambda dtype: sizes[dtype])
