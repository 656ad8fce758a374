"""Layers whose base is one plain tensor: adapters are added to it where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gralora.nn import sharing
from gralora.nn.merging import MergeableLayer


class InPlaceLayer(MergeableLayer):
    """A mergeable layer with a ``weight`` that is written in place.

    Subclasses have ``weight``, a parameter, and call :meth:`_announce` once they have it.
    """

    # A parameter, or a property that finds one.
    weight: Any

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled layer."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._announce()

    def _announce(self) -> None:
        """Let other layers know of the weight, which they may share."""
        sharing.register(self)

    def _matrix(self, weight: Tensor) -> Tensor:
        """The weight as :meth:`_add_to` takes it: a view, which merging writes through."""
        return weight

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        return self.weight.device, self.weight.dtype

    def _check_base(self) -> None:
        if self.weight.is_meta:
            raise RuntimeError(
                f"{self._who}.merge: the weight is on the meta device and has no values"
            )
        if type(self.weight) not in (nn.Parameter, Tensor):
            raise RuntimeError(
                f"{self._who}.merge: the weight must be an ordinary tensor, got a "
                f"{type(self.weight).__name__}; merge before it is sharded or wrapped"
            )

    def _check_unshared(self) -> None:
        if next(sharing.layers_sharing_weight(self), None) is not None:
            raise RuntimeError(
                f"{self._who}.merge: the weight is shared with another GraLoRA layer, which would "
                "change too; give each layer a weight of its own before merging"
            )

    def _try_merge(self, names: tuple[str, ...]) -> None:
        trial = self.weight.clone()
        for name in names:
            self._add_to(self._matrix(trial), name)
            if not torch.isfinite(trial).all():
                raise ValueError(
                    f"{self._who}.merge: merging adapter {name!r} would put Inf or NaN into the "
                    "weight; nothing was changed (safe_merge=True)"
                )

    def _merge_into_base(self, names: Sequence[str]) -> float | None:
        for name in names:
            self._add_to(self._matrix(self.weight), name)
            self._merged += (name,)
        return None

    def _keep_base(self, where: Literal["device", "cpu"]) -> None:
        device = self.weight.device if where == "device" else torch.device("cpu")
        if self._kept is not None:
            self._kept = self._kept.to(device)
        else:
            self._kept = self.weight.detach().to(device, copy=True)

    def _restore_base(self) -> None:
        self.weight.copy_(self._kept)
