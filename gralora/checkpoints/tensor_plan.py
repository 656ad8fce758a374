"""What becomes of one tensor of a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gralora.adapters.stored import StoredExperts, StoredLayer
from gralora.storage.checked_file import Entry


@dataclass(frozen=True)
class Addition:
    """One adapter's share in a weight.

    Attributes:
        adapter: its place among the adapters.
        module: the layer's name in the adapter.
        layer: its factors, or those of all experts of a fused parameter.
        weight: factor of ΔW.
        transposed: whether the checkpoint has the weight, or each expert's, as ``[N, M]``.

    """

    adapter: int
    module: str
    layer: StoredLayer | StoredExperts
    weight: float
    transposed: bool


@dataclass(frozen=True)
class Replacement:
    """One adapter's trained value of a tensor that is no adapted weight.

    Attributes:
        adapter: its place among the adapters.
        name: the tensor's name in the adapter.
        value: trained.
        weight: how much of the difference to the base is taken; 1 takes the value itself.

    """

    adapter: int
    name: str
    value: Tensor
    weight: float


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the merged checkpoint.

    Attributes:
        name: its key.
        source: where the base has it, or None for a tensor that an adapter adds.
        shape: sizes.
        dtype: to be written.
        additions: to a weight.
        replacements: of another tensor.

    """

    name: str
    source: Entry | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    additions: tuple[Addition, ...] = ()
    replacements: tuple[Replacement, ...] = ()

    @property
    def copied(self) -> bool:
        """Whether the bytes stay as they are."""
        return (
            self.source is not None
            and self.source.dtype == self.dtype
            and not self.additions
            and not self.replacements
        )

    @property
    def size(self) -> int:
        """Bytes to be written."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def fingerprint(plans: Sequence[TensorPlan]) -> str:
    """SHA-256 of what becomes of a shard's tensors, but for the numbers of base and adapters."""
    said = [
        [
            plan.name,
            str(plan.dtype),
            list(plan.shape),
            [[a.adapter, a.module, a.weight, a.transposed] for a in plan.additions],
            [[r.adapter, r.name, r.weight] for r in plan.replacements],
        ]
        for plan in plans
    ]
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()
