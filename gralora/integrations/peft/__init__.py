"""PEFT's own LoRA and GraLoRA layers on gralora's operators.

:func:`accelerate` changes how a PEFT model computes and nothing else: parameters, names and files
stay PEFT's. :func:`restore` undoes it, :func:`report` says what each layer does.
"""

from __future__ import annotations

try:
    import peft as _peft
except ImportError as error:
    raise ImportError(
        f"gralora.integrations.peft: needs the package peft, which cannot be imported: {error} "
        "(pip install 'peft>=0.19')"
    ) from error

from gralora.integrations.peft.report import Report, Row, report
from gralora.integrations.peft.swap import accelerate, restore

__all__ = ["Report", "Row", "accelerate", "report", "restore"]

del _peft
