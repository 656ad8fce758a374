"""Kills a merging process at random moments until one has come to its end.

Arguments: folder with ``base`` and ``adapter``, the output, seed. After each kill the output
must be absent, unless it is complete. Prints as JSON how many processes were killed, how many left
temporary files, and how many shards the last one found finished.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

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


def main() -> None:
    root, out, chance = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
    work, report = out.parent / f".{out.name}.merging", out.parent / "report.txt"
    report.unlink(missing_ok=True)
    kills, cut_off, patience = 0, 0, 0.01
    while not _run_once(root, out, report, chance.uniform(0, patience)):
        kills += 1
        cut_off += work.exists() and any(p.suffix == ".part" for p in work.iterdir())
        # A slow machine must come to an end, too.
        patience *= 1.1
        assert kills < 400
    assert not work.exists()
    resumed = int(report.read_text()) if report.exists() else None
    print(json.dumps({"kills": kills, "cut off": cut_off, "resumed": resumed}))


if __name__ == "__main__":
    main()
