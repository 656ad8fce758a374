"""Merging adapters into the weight they adapt, and taking them out bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn import sharing
from gralora.nn.adapters import WHO, AdaptedLayer

Keep = Literal["device", "cpu", False]


class MergeableLayer(AdaptedLayer):
    """An adapted layer whose adapters can be added to its weight."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__(weight, bias)
        sharing.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled layer."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        sharing.register(self)

    def enable_adapters(self, enabled: bool) -> None:
        """Turn all adapters on, or off: the layer is then the frozen one and nothing trains.

        Turning them off unmerges first, since the base weight is asked for.

        Raises:
            RuntimeError: off is asked for while merged with ``keep=False``.

        """
        if not enabled and self._merged:
            self.unmerge()
        super().enable_adapters(enabled)

    @property
    def merged(self) -> bool:
        """Whether any adapter is merged into the weight."""
        return bool(self._merged)

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are merged into the weight."""
        return list(self._merged)

    def delta_weight(self, name: str = "default") -> Tensor:
        """Weight difference ``[M, N]`` that an adapter stands for, in the adapter's dtype.

        Differentiable where the adapter trains, as a penalty on it needs.

        Raises:
            ValueError: an unknown name.

        """
        self._check_known(name, "delta_weight")
        A, B, lora_A, lora_B = self._factors(name)
        return functional.delta_weight(
            A, B, scaling=self.adapters[name].scaling, lora_A=lora_A, lora_B=lora_B
        )

    @torch.no_grad()
    def merge(
        self,
        safe_merge: bool = False,
        adapter_names: str | Sequence[str] | None = None,
        keep: Keep = "cpu",
    ) -> None:
        """Add adapters to the weight in place, in one pass over it each.

        Every module that holds the same weight tensor changes with it. Other layers of this class
        are noticed and the merge is refused; a tied module of another class is not, since a layer
        does not know its model: :func:`gralora.merge_and_unload` does.

        Args:
            safe_merge: try on a copy first, and leave the weight alone when the result would hold
                an Inf or NaN.
            adapter_names: which; None means the active ones. Those merged already are skipped.
            keep: where the exact base weight is kept from now on for :meth:`unmerge`: on the
                weight's ``"device"``, on the ``"cpu"``, or nowhere (False), also where an earlier
                merge kept it.

        Raises:
            TypeError: `adapter_names` is neither a str nor a sequence of str.
            ValueError: an unknown name or `keep`; with `safe_merge`, a result that is not finite.
            RuntimeError: another layer shares the weight, the weight is on the meta device, or an
                earlier merge with ``keep=False`` left no base weight to keep.

        """
        names = self.check_merge(adapter_names, safe_merge=safe_merge, keep=keep)
        if names:
            self._check_unshared()
            self.merge_checked(names, keep=keep)

    @torch.no_grad()
    def merge_checked(self, names: Sequence[str], *, keep: Keep = False) -> None:
        """Do what :meth:`merge` does after its checks, for whoever has made them.

        Args:
            names: as :meth:`check_merge` gives them.
            keep: as in :meth:`merge`.

        """
        before = self._merged
        self._keep_base(keep)
        try:
            for name in names:
                self._add_to(self.weight, name)
                self._merged += (name,)
        except Exception:
            self._take_back(before)
            raise

    @torch.no_grad()
    def check_merge(
        self,
        adapter_names: str | Sequence[str] | None = None,
        *,
        safe_merge: bool = False,
        keep: Keep = False,
    ) -> tuple[str, ...]:
        """Raise what :meth:`merge` would raise, but for a shared weight, and change nothing.

        Returns:
            The names that are still to be merged.

        """
        wanted = (
            self._active if adapter_names is None else self._known_names(adapter_names, "merge")
        )
        if keep not in ("device", "cpu", False):
            raise ValueError(f'{WHO}.merge: keep must be "device", "cpu" or False, got {keep!r}')
        names = tuple(name for name in dict.fromkeys(wanted) if name not in self._merged)
        if names:
            self._check_mergeable(keep)
            if safe_merge:
                self._try_merge(names)
        return names

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the base weight bit for bit.

        Raises:
            RuntimeError: the base weight was not kept (``keep=False``).

        """
        if not self._merged:
            return
        if self._base_weight is None:
            raise RuntimeError(
                f"{WHO}.unmerge: the base weight was not kept when {list(self._merged)} were "
                'merged with keep=False; merge with keep="cpu" or "device" to be able to unmerge'
            )
        self.weight.copy_(self._base_weight)
        self._base_weight = None
        self._merged = ()

    def _check_mergeable(self, keep: Keep) -> None:
        if self.weight.is_meta:
            raise RuntimeError(f"{WHO}.merge: the weight is on the meta device and has no values")
        if type(self.weight) not in (nn.Parameter, Tensor):
            raise RuntimeError(
                f"{WHO}.merge: the weight must be an ordinary tensor, got a "
                f"{type(self.weight).__name__}; merge before it is sharded or wrapped"
            )
        if keep and self._merged and self._base_weight is None:
            raise RuntimeError(
                f"{WHO}.merge: keep={keep!r} asks for the base weight, which the earlier merge of "
                f"{list(self._merged)} with keep=False did not keep; use keep=False again"
            )

    def _check_unshared(self) -> None:
        if next(sharing.layers_sharing_weight(self), None) is not None:
            raise RuntimeError(
                f"{WHO}.merge: the weight is shared with another GraLoRALinear, which would "
                "change too; give each layer a weight of its own before merging"
            )

    def _try_merge(self, names: tuple[str, ...]) -> None:
        trial = self.weight.clone()
        for name in names:
            self._add_to(trial, name)
            if not torch.isfinite(trial).all():
                raise ValueError(
                    f"{WHO}.merge: merging adapter {name!r} would put Inf or NaN into the weight; "
                    "nothing was changed (safe_merge=True)"
                )

    def _keep_base(self, keep: Keep) -> None:
        if not keep:
            self._base_weight = None
            return
        device = self.weight.device if keep == "device" else torch.device("cpu")
        if self._base_weight is not None:
            self._base_weight = self._base_weight.to(device)
        else:
            self._base_weight = self.weight.detach().to(device, copy=True)

    def _take_back(self, before: tuple[str, ...]) -> None:
        """Undo as much of a merge that failed as the kept base weight allows."""
        if before or self._base_weight is None:
            return
        self.weight.copy_(self._base_weight)
        self._base_weight = None
        self._merged = ()

    def _add_to(self, weight: Tensor, name: str) -> None:
        A, B, lora_A, lora_B = self._factors(name)
        torch.ops.gralora.merge_(weight, A, B, lora_A, lora_B, scaling=self.adapters[name].scaling)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self._merged:
            raise RuntimeError(
                f"{WHO}.load_state_dict: {list(self._merged)} are merged into the weight of "
                f"{prefix.rstrip('.') or 'this layer'}; {self._way_out()}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the base weight of a merged layer, since the adapters are saved beside it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self._merged:
            return
        if self._base_weight is None:
            raise RuntimeError(
                f"{WHO}.state_dict: {list(self._merged)} are merged into the weight of "
                f"{prefix.rstrip('.') or 'this layer'} with keep=False and would be applied twice "
                "where the state is loaded; save `layer.weight` alone, as a plain linear layer's"
            )
        destination[prefix + "weight"] = self._base_weight
