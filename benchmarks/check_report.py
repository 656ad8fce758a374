"""Makes gpu_check.sh's report: which steps ran, how each ended, on which GPU.

    python benchmarks/check_report.py VERDICTS REPORT [LOG...]

VERDICTS has a line for each step: name, verdict and seconds, apart by tabs. Of each LOG that is
there the last line is kept where it counts tests.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_COUNTS = re.compile(r"\d+ (passed|failed|error)")


def make_report(verdicts: Path, logs: Sequence[Path]) -> dict[str, Any]:
    """The report; GPU and versions are those of this interpreter's torch."""
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("GRALORA_COMMIT"),
        **_versions(),
        "steps": [],
        "tests": {},
    }
    if verdicts.exists():
        for line in verdicts.read_text(encoding="utf-8").splitlines():
            step, verdict, seconds = line.split("\t")
            report["steps"].append({"step": step, "verdict": verdict, "seconds": int(seconds)})
    for log in logs:
        last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2] if log.exists() else ""
        if _COUNTS.search(last):
            report["tests"][log.stem] = last.strip("= ")
    return report


def _versions() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"gpu": None}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda}


def main(arguments: Sequence[str]) -> None:
    """Write the report."""
    verdicts, target, *logs = map(Path, arguments)
    text = json.dumps(make_report(verdicts, logs), indent=1)
    target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
