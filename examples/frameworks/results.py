"""The folder of a run: its checkpoints, and what is left at its end."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from finetuning.errors import FinetuneError
from finetuning.record import environment, peak_memory, write_json
from finetuning.saving import make_folder
from rich.console import Console
from rich.table import Table
from rich.text import Text

_OPTIONS = "options.json"
# Of how the run is carried out, not of what it computes.
_FREE = ("output", "cache", "resume", "save_every", "held_out")


def begin(options: argparse.Namespace, complete: str) -> Path | None:
    """Prepare ``--output``; return the checkpoint to go on from, or None.

    Args:
        options: of the run.
        complete: the file that is written last into a checkpoint.

    Raises:
        FinetuneError: nothing to resume, a run that would be overwritten, or one of other options.

    """
    make_folder(options.output)
    found = checkpoint(options.output, complete)
    given = {name: _plain(value) for name, value in vars(options).items() if name not in _FREE}
    if not options.resume:
        if found is not None:
            raise FinetuneError(
                f"--output: {options.output} holds checkpoints of a run (add --resume to go on "
                "with it, or name another folder)"
            )
        write_json(options.output / _OPTIONS, given)
        return None
    if found is None:
        raise FinetuneError(
            f"--resume: no whole checkpoint in {options.output} (start without --resume)"
        )
    before = json.loads((options.output / _OPTIONS).read_text(encoding="utf-8"))
    for name, value in given.items():
        if before.get(name) != value:
            raise FinetuneError(
                f"--resume: {name} must be that of the run, {before.get(name)}, got {value}"
            )
    return found


def checkpoint(folder: Path, complete: str) -> Path | None:
    """The folder ``checkpoint-<step>`` of the highest step that holds the file `complete`."""
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / complete).is_file()
    }
    return found[max(found)] if found else None


def finish(
    options: argparse.Namespace,
    *,
    losses: dict[int, float],
    held_out: dict[int, float],
    trainable: int,
    seconds: float,
    **more: Any,
) -> None:
    """Write ``run.json`` and show what came of the run.

    Args:
        options: of the run.
        losses: of each step, those before a resume included.
        held_out: loss on what is never trained on, by the number of steps taken before.
        trainable: number of parameters that train.
        seconds: of training in this process.
        more: further entries.

    """
    record = {
        "options": {name: _plain(value) for name, value in vars(options).items()},
        "environment": environment(options.device),
        "trainable_parameters": trainable,
        "losses": {str(step): loss for step, loss in losses.items()},
        "held_out_losses": {str(step): loss for step, loss in held_out.items()},
        "training_s": seconds,
        "peak_memory_bytes": peak_memory(options.device),
        **more,
    }
    write_json(options.output / "run.json", record)
    first, *_, last = (held_out[step] for step in (min(held_out), max(held_out)))
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        (f"held-out loss after {min(held_out)} steps", f"{first:.4f}"),
        (f"held-out loss after {max(held_out)} steps", f"{last:.4f}"),
        ("trainable parameters", f"{trainable:,}"),
        ("training time", f"{seconds:.1f} s"),
    ):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(Text(f"in {options.output}: adapter, run.json"))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str)) or value is None else str(value)
