"""``adapter_names`` on its way from a PEFT model to its layers, for GraLoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.gralora.layer import GraloraLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

_BASE = "__base__"
# Called by transformers' generate with the number of copies that it makes of each row, which comes
# from its arguments, from a GenerationConfig among them or from that of the model.
_EXPAND = "_expand_inputs_for_generation"


@contextmanager
def passing_names(tuner: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Hand every layer the adapters of its rows, while a forward or a generation runs.

    Generation repeats each row for beams and for several answers; an encoder runs before that, on
    the rows as they came.

    Args:
        tuner: PEFT's model of layers.
        names: of an adapter, or ``"__base__"``, for each row of the batch.

    Raises:
        TypeError: `names` is no list of str.
        ValueError: the model trains, or a name is unknown.

    """
    _check_names(tuner, names)
    rows = _Rows(names)
    with ExitStack() as stack:
        for module in tuner.modules():
            if isinstance(module, GraloraLayer | AuxiliaryTrainingWrapper):
                handle = module.register_forward_pre_hook(rows.pass_on, with_kwargs=True)
                stack.callback(handle.remove)
            elif hasattr(type(module), _EXPAND):
                stack.enter_context(rows.following(module))
        yield


class _Rows:
    """The names of the rows of a batch, as it is at present."""

    def __init__(self, names: Sequence[str]) -> None:
        self.given = list(names)
        self.names = self.given

    def pass_on(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook that adds the argument of PEFT's layers."""
        names = self.names
        if isinstance(module, AuxiliaryTrainingWrapper):
            # PEFT's wrapper looks every name up, also of adapters that left the module as it was.
            has = module._adapters
            names = [name if name in has else _BASE for name in names]
        return args, {**kwargs, "adapter_names": names}

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Repeat the names when a model repeats its rows."""
        own = model.__dict__.get(_EXPAND)
        expand: Callable[..., Any] = getattr(model, _EXPAND)

        def repeat(expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
            self.names = [name for name in self.given for _ in range(expand_size)]
            return expand(expand_size, *args, **kwargs)

        model.__dict__[_EXPAND] = repeat
        try:
            yield
        finally:
            if own is None:
                del model.__dict__[_EXPAND]
            else:
                model.__dict__[_EXPAND] = own


def _check_names(tuner: nn.Module, names: Sequence[str]) -> None:
    if not isinstance(names, list | tuple):
        raise TypeError(
            f"adapter_names: must be a list of str, got {type(names).__name__} {names!r}"
        )
    if tuner.training:
        raise ValueError(
            "adapter_names: works in evaluation mode only, got a model in training mode"
        )
    known = {
        name
        for module in tuner.modules()
        if isinstance(module, GraloraLayer)
        for name in module.gralora_A
    }
    unknown = sorted(set(names) - known - {_BASE})
    if unknown:
        raise ValueError(
            f"adapter_names: must name adapters of the model or {_BASE!r}, got {unknown} "
            f"(adapters: {sorted(known)})"
        )
