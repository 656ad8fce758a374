"""What the terminal shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from finetuning.training import Display

_GIB = 1 << 30


@contextmanager
def progress(console: Console, steps: int, unit: str = "tokens/s") -> Iterator[Display]:
    """A bar with loss and rate; yields the function that moves it."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn(f"loss {{task.fields[loss]}}  {{task.fields[rate]}} {unit}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=steps, loss="-", rate="-")

        def display(step: int, loss: float, rate: float) -> None:
            bar.update(task, completed=step, loss=f"{loss:.3f}", rate=f"{rate:,.0f}")

        yield display


def table(run: dict[str, Any]) -> Table:
    """The results of a run, from its record."""
    computed, timings = run["computation"], run["timings"]
    trainable, total = computed["trainable_parameters"], computed["parameters"]
    held_out = list(computed["held_out_losses"].values())
    rows = [
        ("held-out loss before", f"{held_out[0]:.4f}"),
        ("held-out loss after", f"{held_out[-1]:.4f}"),
        ("trainable parameters", f"{trainable:,} ({trainable / total:.2%})"),
        ("training time", f"{timings['training_s']:.1f} s"),
        ("tokens/s", f"{timings['tokens_per_s']:,.0f}"),
        ("time of the whole run", f"{timings['total_s']:.1f} s"),
        ("peak memory", f"{run['peak_memory_bytes'] / _GIB:.2f} GiB"),
    ]
    merged = computed["merged_logits"]
    if merged is not None:
        difference = f"{merged['relative']:.1e} (accepted: {merged['allowed']:.1e})"
        rows.append(("logits, merged - adapted", difference))
    result = Table(show_header=False)
    result.add_column()
    result.add_column(justify="right")
    for name, value in rows:
        result.add_row(name, value)
    return result


def show(console: Console, run: dict[str, Any], prompt: str, folder: Path) -> None:
    """Print the table, what the model writes before and after, and where the files are."""
    console.print(table(run))
    for when, text in zip(("before", "after"), run["computation"]["continuations"], strict=True):
        # Text, not str: the brackets of source code are no markup.
        content = Text(prompt, style="dim").append(text, style="bold")
        console.print(Panel(content, title=when, title_align="left"))
    console.print(Text(f"in {folder}: {', '.join(run['files'])}"))
