"""Prints the build plan as JSON, for a build that is started by CMake and not by pip."""

from __future__ import annotations

import os
import sys

from .errors import BuildError
from .plan import decide
from .settings import split


def main() -> int:
    """Read GRALORA_TORCH and GRALORA_CUDA, print the plan; 1 with a message when there is none."""
    named = {
        setting: value
        for setting, name in (("gralora.torch", "GRALORA_TORCH"), ("gralora.cuda", "GRALORA_CUDA"))
        if (value := os.environ.get(name))
    }
    try:
        settings, _ = split(named)
        print(decide(settings).to_json())
    except BuildError as error:
        print(f"gralora: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
