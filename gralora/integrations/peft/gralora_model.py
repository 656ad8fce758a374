"""What PEFT's GraLoRA lacks as a model: mixed batches, and merges that are checked beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.gralora.layer import GraloraLayer
from peft.tuners.gralora.model import GraloraModel as PeftGraloraModel
from peft.tuners.tuners_utils import onload_layer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from gralora.integrations.peft.requantising import (
    RequantisingMerge,
    check_quantised_merge,
    one_warning,
)

_BASE = "__base__"


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
            if isinstance(module, RequantisingMerge):
                with onload_layer(module):
                    check_quantised_merge(module, adapter_names, safe_merge, who)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_names(names)
        # Generation repeats each row; an encoder runs before that, on the rows as they came.
        repeated = [name for name in names for _ in range(_repeats(kwargs))]
        encoder = _encoder(self.model)
        in_encoder = set() if encoder is None else set(encoder.modules())
        with ExitStack() as hooks:
            for module in self.modules():
                if isinstance(module, GraloraLayer | AuxiliaryTrainingWrapper):
                    rows = list(names) if module in in_encoder else repeated
                    hooks.callback(
                        module.register_forward_pre_hook(_Passing(rows), with_kwargs=True).remove
                    )
            yield

    def _check_names(self, names: Sequence[str]) -> None:
        if not isinstance(names, list | tuple):
            raise TypeError(
                f"adapter_names: must be a list of str, got {type(names).__name__} {names!r}"
            )
        if self.training:
            raise ValueError(
                "adapter_names: works in evaluation mode only, got a model in training mode"
            )
        known = {
            name
            for module in self.modules()
            if isinstance(module, GraloraLayer)
            for name in module.gralora_A
        }
        unknown = sorted(set(names) - known - {_BASE})
        if unknown:
            raise ValueError(
                f"adapter_names: must name adapters of the model or {_BASE!r}, got {unknown} "
                f"(adapters: {sorted(known)})"
            )


class _Passing:
    """Forward pre-hook that hands a layer the adapters of its rows."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "adapter_names": self.names}


def _repeats(kwargs: dict[str, Any]) -> int:
    """How often ``generate`` repeats each row: for beams, or for several answers."""
    config = kwargs.get("generation_config")
    wanted = (
        kwargs.get(n) or getattr(config, n, None) for n in ("num_beams", "num_return_sequences")
    )
    return max(number or 1 for number in wanted)


def _encoder(model: Any) -> nn.Module | None:
    """Encoder of an encoder-decoder model; recent transformers give a decoder for itself."""
    get_encoder = getattr(model, "get_encoder", None)
    encoder = None if get_encoder is None else get_encoder()
    return None if encoder is model else encoder
