"""Progress bars on standard error, where that is a terminal, for work that takes a while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from gralora.checkpoints.merge import Progress

# Seconds; what takes less is over before anybody has read a bar.
_PATIENCE = 0.5

# ``show(description, done, total)``
Show = Callable[[str, int, int], None]


@contextlib.contextmanager
def counted(noun: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for things of one kind: yields ``update(done, total)``.

    Args:
        noun: what is counted, such as ``"layers"``.

    """
    from rich.progress import MofNCompleteColumn

    with _bar(MofNCompleteColumn()) as show:
        yield lambda done, total: show(noun, done, total)


@contextlib.contextmanager
def merging() -> Iterator[Callable[[Progress], None]]:
    """A bar for a merge, with bytes and bytes per second."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    def update(step: Progress) -> None:
        show(f"shard {step.position} of {step.shards}", step.done, step.total)

    with _bar(DownloadColumn(), TransferSpeedColumn()) as show:
        yield update


@contextlib.contextmanager
def _bar(*columns: ProgressColumn) -> Iterator[Show]:
    """A bar that appears with a step that comes late enough, and goes at the end."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    bar = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        *columns,
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task("", total=None)
    started = time.monotonic()

    def show(description: str, done: int, total: int) -> None:
        if not console.is_terminal:
            return
        bar.update(task, description=description, completed=done, total=total)
        if time.monotonic() - started > _PATIENCE:
            bar.start()

    try:
        yield show
    finally:
        # Stopping a bar that never started prints an empty line.
        if bar.live.is_started:
            bar.stop()
