"""Which layers of a PEFT model run fused, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from gralora.integrations.peft.forward import AcceleratedForward
from gralora.integrations.peft.obstacles import has_other_forward
from gralora.integrations.peft.plan import Way, plan
from gralora.integrations.peft.swap import _check_module, accelerated_class

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: of the module in the model.
        way: ``fused``: base layer and adapter in one operator. ``beside``: the base layer's own
            forward, the adapter by an operator. ``base``: the base layer alone, no adapter acts.
            ``peft``: PEFT's own forward.
        reason: why, in words.

    """

    name: str
    way: Way
    reason: str


@dataclass(frozen=True)
class Report:
    """The ways that the layers of a model take in its present state; prints as a table.

    Attributes:
        rows: one for each layer, in the order of the model's modules.

    """

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[str, int]:
        """Number of layers that take each way."""
        return dict(Counter(row.way for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Everything in lists, dicts and strings, as JSON takes it."""
        return {"counts": self.counts(), "layers": [asdict(row) for row in self.rows]}

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        summary = ", ".join(f"{count} {way}" for way, count in self.counts().items())
        table = Table(title=f"PEFT layers: {summary or 'none'}", title_justify="left")
        for column in ("layer", "way", "reason"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(Text(row.name), row.way, Text(row.reason))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def report(model: nn.Module) -> Report:
    """Say for each layer of PEFT in a model which way its forward takes.

    The ways are those of the present state: active adapters, merging, hooks. An input of an unusual
    kind (a tensor subclass, a dtype other than the weight's) may still make one call take another.

    Args:
        model: a PeftModel, or any module that holds layers of PEFT.

    Raises:
        TypeError: `model` is no module.

    """
    _check_module(model, "report")
    return Report(
        tuple(
            Row(name, *_way(module))
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)
        )
    )


def _way(layer: Any) -> tuple[Way, str]:
    if not isinstance(layer, AcceleratedForward):
        if accelerated_class(type(layer)) is not None:
            return "peft", "not accelerated: call accelerate"
        kind = type(layer)
        return "peft", f"{kind.__module__}.{kind.__qualname__} is not accelerated"
    if has_other_forward(layer) and not _wraps_own_forward(layer):
        return "peft", "the layer's forward is replaced"
    way, reason, _, _ = plan(layer)
    return way, reason


def _wraps_own_forward(layer: nn.Module) -> bool:
    """Whether a replaced forward is accelerate's hook, which calls the layer's own."""
    kept = layer.__dict__.get("_old_forward")
    return getattr(kept, "__func__", None) is type(layer).forward
