"""Says where PEFT's GraLoRA adapted layers that its configuration leaves out.

PEFT heeds `layers_to_transform` for endings of names alone. Beside a regular expression its LoRA
refuses it, its GraLoRA says nothing and adapts every layer that matches; so too with
``"all-linear"``, which becomes a list of full names. Which layers are adapted decides what is in a
file, and is PEFT's to decide; that it is not what was asked for can be said.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from peft.tuners.gralora.layer import GraloraLayer

from gralora.injection.names import layer_index


def warn_of_ignored_layers(tuner: Any) -> None:
    """Warn of each adapter of a GraLoRA tuner for which PEFT has ignored `layers_to_transform`.

    Args:
        tuner: PEFT's ``GraloraModel``.

    Warns:
        UserWarning: layers beyond `layers_to_transform` are adapted.

    """
    for adapter, config in tuner.peft_config.items():
        wanted = config.layers_to_transform
        indices = [wanted] if isinstance(wanted, int) else list(wanted or ())
        if not indices:
            continue
        beyond = [name for name in _adapted(tuner, adapter) if _index(config, name) not in indices]
        if beyond:
            warnings.warn(
                f"accelerate: PEFT's GraLoRA heeds layers_to_transform only where target_modules "
                f"lists endings of names; adapter {adapter!r} has layers_to_transform={indices}, "
                f"yet {len(beyond)} layers beyond are adapted, such as {beyond[0]} "
                "(give target_modules as a list of endings)",
                stacklevel=3,
            )


def _adapted(tuner: Any, adapter: str) -> list[str]:
    return [
        name
        for name, module in tuner.model.named_modules()
        if isinstance(module, GraloraLayer) and adapter in module.gralora_A
    ]


def _index(config: Any, name: str) -> int | None:
    try:
        return layer_index(config, name)
    except re.error:
        # PEFT never read an expression that it had no use for.
        return None
