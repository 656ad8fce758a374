"""Kills merging processes at random moments until one has come to its end, once for each seed.

Arguments: folder with ``base`` and ``adapter``, folder of the outputs, seeds. After each kill the
output must be absent, unless it is complete. Prints a JSON object that gives, for each seed, how
many processes were killed, how many left temporary files, and how many shards the last one found
finished. The output for a seed is the folder of that name.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import torch

from gralora.checkpoints.merge import merge_checkpoint


def _merge(root: Path, out: Path, report: Path) -> None:
    torch.set_num_threads(1)
    result = merge_checkpoint(root / "base", root / "adapter", out)
    report.write_text(str(result.resumed))


def _run_once(root: Path, out: Path, report: Path, patience: float) -> bool:
    """Whether the process came to its end in time."""
    child = os.fork()
    if child == 0:
        try:
            _merge(root, out, report)
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(patience)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"failed by itself: {status}"
    return out.exists()


def _try(root: Path, out: Path, seed: int) -> dict[str, int | None]:
    """Merge for one seed."""
    work, report, chance = (
        out.parent / f".{out.name}.merging",
        out.with_suffix(".txt"),
        Random(seed),
    )
    kills, cut_off, patience = 0, 0, 0.01
    while not _run_once(root, out, report, chance.uniform(0, patience)):
        kills += 1
        cut_off += work.exists() and any(p.suffix == ".part" for p in work.iterdir())
        # A slow machine must come to an end, too.
        patience *= 1.1
        assert kills < 400
    assert not work.exists()
    # The last process may have been killed just before it wrote its report.
    resumed = report.read_text() if report.exists() else ""
    return {"kills": kills, "cut off": cut_off, "resumed": int(resumed) if resumed else None}


def main() -> None:
    root, outs, seeds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    print(json.dumps({seed: _try(root, outs / seed, int(seed)) for seed in seeds}))


if __name__ == "__main__":
    main()
