"""Fused experts in PEFT's LoRA of `target_parameters`: names and layouts of the factors.

PEFT gives each parameter of a module a wrapper around the one before: the last parameter's factors
have the module's name, and each earlier one has a further ``.base_layer``. A wrapper's ``lora_A``
counts its rows by (expert, rank), its ``lora_B`` its columns by (rank, expert).

Source: ``ParamWrapper`` of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_NESTED = ".base_layer"


def names_in_files(parameters: Sequence[str]) -> dict[str, str]:
    """What PEFT's files call the wrapper of each parameter.

    Args:
        parameters: full names, those of one module in the module's order.

    """
    owners = [name.rpartition(".")[0] for name in parameters]
    return {
        name: owner + _NESTED * owners[place + 1 :].count(owner)
        for place, (name, owner) in enumerate(zip(parameters, owners, strict=True))
    }


def join_experts(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """``lora_A [E*rank, N]`` and ``lora_B [M, rank*E]``.

    Args:
        factors: of each expert ``lora_A [rank, N]`` and ``lora_B [M, rank]``.

    """
    of_A, of_B = zip(*factors, strict=True)
    # An expert whose scaled numbers do not fit 16 bits has float32, and all share one tensor.
    dtype = max((factor.dtype for factor in of_B), key=lambda dtype: dtype.itemsize)
    return torch.cat(of_A), torch.stack([factor.to(dtype) for factor in of_B], 2).flatten(1)
