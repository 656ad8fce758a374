"""Tensors that a merge copies byte for byte and computes nothing with: those of quantised models.

Their numbers mean something only together with scales that lie elsewhere in the checkpoint, such as
``weight_scale_inv`` for blocks of a float8 weight.
"""

from __future__ import annotations

import torch

from gralora.checkpoints.folder import Checkpoint
from gralora.checkpoints.paths import WHO
from gralora.injection.listing import some
from gralora.storage.checked_file import Entry

# Floating numbers that stand for themselves.
COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WAY_OUT = "merge into the model as it was before it was quantised"


def check_merged(key: str, entry: Entry) -> None:
    """Refuse a weight that no ΔW can be added to.

    Raises:
        TypeError: integers, or floating numbers of 8 bits.

    """
    if entry.dtype not in COMPUTED:
        raise TypeError(
            f"{WHO}: weights to merge into must be floating, of at least 16 bits, got "
            f"{some([key])} with {entry.dtype} ({_WAY_OUT})"
        )


def check_replaced(key: str, entry: Entry) -> None:
    """Refuse to put trained numbers in the place of scaled ones.

    Raises:
        TypeError: floating numbers of 8 bits.

    """
    if _is_scaled(entry):
        raise TypeError(
            f"{WHO}: what an adapter has trained as a whole must not be quantised in the base, got "
            f"{some([key])} with {entry.dtype} ({_WAY_OUT})"
        )


def check_dtype(base: Checkpoint, dtype: torch.dtype) -> None:
    """Refuse to convert quantised weights or their scales.

    Raises:
        TypeError: the base is quantised, by its tensors or its config.

    """
    scaled = [key for key, entry in base.tensors.items() if _is_scaled(entry)]
    if not scaled and not (base.config or {}).get("quantization_config"):
        return
    why = f"{some(scaled)} with 8 bits" if scaled else "a quantization_config in config.json"
    raise TypeError(
        f"{WHO}: a quantised model must keep its dtypes, got dtype={dtype} and {why} (leave out "
        "dtype)"
    )


def _is_scaled(entry: Entry) -> bool:
    return entry.dtype.is_floating_point and entry.dtype not in COMPUTED
