"""How a program of this folder ends where something is wrong that its user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import smollm2
import torch

from finetuning.errors import FinetuneError


@contextmanager
def in_one_line(less_memory: str, interrupted: str | None = None) -> Iterator[None]:
    """End the program with one line and status 1 instead of a traceback.

    Args:
        less_memory: options that need less of it.
        interrupted: what to do after Ctrl-C, which ends the program with the shell's status for it.

    """
    try:
        yield
    except (FinetuneError, smollm2.SmolLM2Error) as error:
        raise SystemExit(f"error: {error}") from error
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"error: {error}\nLess memory: {less_memory}") from error
    except KeyboardInterrupt:
        if interrupted is not None:
            print(f"\nstopped: {interrupted}")
        raise SystemExit(130) from None
