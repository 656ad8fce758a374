"""The very first launch of each kernel in a process may be one that a graph captures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support" / "ops_first_launch.py"
SECONDS = 200


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("path", ["aten", "sm80", "sm90"])
def test_first_launch_inside_a_capture(path: str) -> None:
    run = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), path],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "captured"
