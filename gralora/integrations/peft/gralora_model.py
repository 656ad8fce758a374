"""What PEFT's GraLoRA lacks as a model: mixed batches, and merges that are checked beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.gralora.model import GraloraModel as PeftGraloraModel
from peft.tuners.tuners_utils import onload_layer
from torch import nn

from gralora.integrations.peft.requantising import (
    RequantisingMerge,
    check_quantised_merge,
    one_warning,
)
from gralora.integrations.peft.row_names import passing_names


class GraloraModel(PeftGraloraModel):
    """``peft.tuners.gralora.model.GraloraModel``, under the same name.

    PeftModel asks its tuner for a context around each forward and each generation; PEFT's LoRA has
    one, its GraLoRA none.
    """

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge as PEFT does, also into quantised weights.

        Raises:
            RuntimeError: a weight of a kind that cannot be merged into; no layer was changed.
            ValueError: with `safe_merge`, a quantised result that is not finite; likewise.

        Warns:
            UserWarning: quantised weights were quantised again, and how far off that is.

        """
        self._check_merge("merge_adapter", adapter_names, safe_merge)
        with one_warning("merge_adapter"):
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Merge and return the base model as PEFT does, also one with quantised weights.

        Raises:
            RuntimeError, ValueError: as :meth:`merge_adapter`.

        Warns:
            UserWarning: as :meth:`merge_adapter`.

        """
        self._check_merge("merge_and_unload", adapter_names, safe_merge)
        with one_warning("merge_and_unload"):
            merged: nn.Module = super().merge_and_unload(
                progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
            )
        return merged

    def _check_merge(self, who: str, adapter_names: list[str] | None, safe_merge: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, RequantisingMerge) and module.has_quantised_base():
                # As PEFT itself before it merges: an offloaded weight has no values.
                with onload_layer(module):
                    check_quantised_merge(module, adapter_names, safe_merge, who)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        with passing_names(self, names):
            yield
