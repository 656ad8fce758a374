"""Merging adapters into the base they adapt, and taking them out bit for bit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn.adapters import AdaptedLayer

Keep = Literal["device", "cpu", False]


class MergeableLayer(AdaptedLayer):
    """An adapted layer whose adapters can be added to the weight of its base.

    What the base is, and how its weight is read and written, is the subclass's: see the methods
    that are abstract here.

    Args:
        in_features: ``N``.
        out_features: ``M``.

    """

    @abstractmethod
    def plain(self) -> nn.Module:
        """The base as the model had it, with the very same tensors."""

    @abstractmethod
    def _check_base(self) -> None:
        """Raise RuntimeError unless adapters can be merged into the base."""

    @abstractmethod
    def _check_unshared(self) -> None:
        """Raise RuntimeError where another layer would change together with this one."""

    @abstractmethod
    def _try_merge(self, names: tuple[str, ...]) -> None:
        """Raise ValueError where merging would give an Inf or NaN; change nothing."""

    @abstractmethod
    def _merge_into_base(self, names: Sequence[str]) -> float | None:
        """Add adapters to the base and note them as merged; return what :meth:`merge` does."""

    @abstractmethod
    def _keep_base(self, where: Literal["device", "cpu"]) -> None:
        """Let ``_kept`` be the exact base, on its device or on the CPU, if it is not merged yet.

        Where it is, what is kept already is moved.
        """

    @abstractmethod
    def _restore_base(self) -> None:
        """Make the base what ``_kept`` is."""

    def lacks_part(self, names: Sequence[str] = ()) -> bool:
        """Whether the base lacks what an adapter took out of it.

        Args:
            names: adapters that are not asked about, since they are to be merged.

        """
        return False

    def check_delete(self, name: str) -> None:
        """Raise RuntimeError where the base could not get back what an adapter took out of it."""

    def put_back(self) -> None:
        """Give the base back what adapters took out of it that are not merged into it."""

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
    ) -> float | None:
        """Add adapters to the weight.

        A weight of the layer's own is written in place, in one pass over it each, and every module
        that holds the same tensor changes with it. Other adapted layers are noticed and the merge
        is refused; a tied module of another class is not, since a layer does not know its model:
        :func:`gralora.merge_and_unload` does. A quantised weight is replaced: it is dequantised,
        added to, and quantised again with the same settings.

        Args:
            safe_merge: try on a copy first, and leave the weight alone when the result would hold
                an Inf or NaN.
            adapter_names: which; None means the active ones. Those merged already are skipped.
            keep: where the exact base weight is kept from now on for :meth:`unmerge`: on the
                weight's ``"device"``, on the ``"cpu"``, or nowhere (False), also where an earlier
                merge kept it.

        Returns:
            What quantising again has cost: the Frobenius norm of the difference between the new
            weight and the exact merged one, relative to that of the latter. None where the base is
            not quantised or nothing was left to merge.

        Raises:
            TypeError: `adapter_names` is neither a str nor a sequence of str.
            ValueError: an unknown name or `keep`; with `safe_merge`, a result that is not finite.
            RuntimeError: another layer shares the weight, the weight is on the meta device or of a
                kind that cannot be merged into, or an earlier merge with ``keep=False`` left no
                base weight to keep.

        """
        names = self.check_merge(adapter_names, safe_merge=safe_merge, keep=keep)
        if not names:
            return None
        self._check_unshared()
        return self.merge_checked(names, keep=keep)

    @torch.no_grad()
    def merge_checked(self, names: Sequence[str], *, keep: Keep = False) -> float | None:
        """Do what :meth:`merge` does after its checks, for whoever has made them.

        Args:
            names: as :meth:`check_merge` gives them.
            keep: as in :meth:`merge`.

        Returns:
            As :meth:`merge`.

        """
        if not names:
            return None
        before = self._merged
        if keep:
            self._keep_base(keep)
        else:
            self._kept = None
        try:
            return self._merge_into_base(names)
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

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`merge`.

        """
        wanted = (
            self._active if adapter_names is None else self._known_names(adapter_names, "merge")
        )
        if keep not in ("device", "cpu", False):
            raise ValueError(
                f'{self._who}.merge: keep must be "device", "cpu" or False, got {keep!r}'
            )
        names = tuple(name for name in dict.fromkeys(wanted) if name not in self._merged)
        if names:
            self._check_base()
            self._check_kept(keep)
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
        if self._kept is None:
            raise RuntimeError(
                f"{self._who}.unmerge: the base weight was not kept when {list(self._merged)} were "
                'merged with keep=False; merge with keep="cpu" or "device" to be able to unmerge'
            )
        self._restore()

    def _check_kept(self, keep: Keep) -> None:
        if keep and self._merged and self._kept is None:
            raise RuntimeError(
                f"{self._who}.merge: keep={keep!r} asks for the base weight, which the earlier "
                f"merge of {list(self._merged)} with keep=False did not keep; use keep=False again"
            )

    def _take_back(self, before: tuple[str, ...]) -> None:
        """Undo as much of a merge that failed as the kept base weight allows."""
        if before or self._kept is None:
            return
        self._restore()

    def _restore(self) -> None:
        self._restore_base()
        self._kept = None
        self._merged = ()

    def _add_to(self, weight: Tensor, name: str) -> None:
        A, B, lora_A, lora_B = self._factors(name)
        torch.ops.gralora.merge_(weight, A, B, lora_A, lora_B, scaling=self.adapters[name].scaling)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self._merged:
            raise RuntimeError(
                f"{self._who}.load_state_dict: {list(self._merged)} are merged into the weight of "
                f"{prefix.rstrip('.') or 'this layer'}; {self._way_out()}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_savable(self, prefix: str) -> None:
        """Raise where a state dict would hold merged adapters twice."""
        if self._merged and self._kept is None:
            raise RuntimeError(
                f"{self._who}.state_dict: {list(self._merged)} are merged into the weight of "
                f"{prefix.rstrip('.') or 'this layer'} with keep=False and would be applied twice "
                "where the state is loaded; save what `plain()` gives instead"
            )
