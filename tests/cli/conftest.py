"""Fresh interpreters: what a user's shell sees of the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def python(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python(*arguments, path=None, env=None)``: runs them in a new process, in another folder.

    ``path`` is put before the installed packages.
    """

    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(
        *arguments: str, path: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **(env or {})}
        environment.pop("PYTHONPATH", None)
        if path is not None:
            environment["PYTHONPATH"] = str(path)
            # An editable install finds the package before the path is asked.
            (path / "sitecustomize.py").write_text(
                "import sys\n"
                "editable = [f for f in sys.meta_path if 'ScikitBuild' in type(f).__name__]\n"
                "sys.meta_path = [f for f in sys.meta_path if f not in editable]\n"
            )
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
