"""Fused experts in PEFT's LoRA of `target_parameters`: names and layouts of the factors.

PEFT gives each parameter of a module a wrapper around the one before: the last parameter's factors
have the module's name, and each earlier one has a further ``.base_layer``. A wrapper's ``lora_A``
counts its rows by (expert, rank), its ``lora_B`` its columns by (rank, expert).

Source: ``ParamWrapper`` of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from gralora.injection.listing import some
from gralora.injection.paths import endings
from gralora.storage.config_values import WHO as READER

_NESTED = ".base_layer"
# Parameters in the order in which all experts of transformers have them.
_IN_MODULES = ("gate_up_proj", "up_proj", "down_proj")


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


def parameters_in_files(stems: Iterable[str], entries: Sequence[str]) -> dict[str, str]:
    """The reverse of :func:`names_in_files`, without the model: full names by those in a file.

    Args:
        stems: what the names of factors begin with; those of linear layers are left out.
        entries: of ``target_parameters``.

    Returns:
        Parameters by stem, those of one module in its own order.

    Raises:
        ValueError: entries or stems that do not say which parameter is meant.

    """
    attributes_of: dict[str, list[str]] = {}
    for entry in entries:
        owner, dot, attribute = entry.rpartition(".")
        if not dot:
            raise ValueError(
                f"{READER}: target_parameters must name modules too, as in experts.{entry}, got "
                f"{entry!r:.200}"
            )
        attributes_of.setdefault(owner, []).append(attribute)
    depths_of: dict[str, set[int]] = {}
    for stem in stems:
        module, depth = _unwrapped(stem)
        depths_of.setdefault(module, set()).add(depth)
    found = {}
    for module, depths in depths_of.items():
        named = {name for ending in endings(module) for name in attributes_of.get(ending, ())}
        if not named and depths == {0}:
            continue
        if depths != set(range(len(named))):
            raise ValueError(
                f"{READER}: the file must hold factors for each parameter of target_parameters, "
                f"got those of {len(depths)} of {module} for {some(sorted(named)) or 'none'}"
            )
        for place, attribute in enumerate(_in_module_order(module, named), 1):
            found[module + _NESTED * (len(named) - place)] = f"{module}.{attribute}"
    return found


def _unwrapped(stem: str) -> tuple[str, int]:
    """A module's name, and how many wrappers of PEFT lie around the one that is meant."""
    module = stem
    while module.endswith(_NESTED):
        module = module.removesuffix(_NESTED)
    return module, (len(stem) - len(module)) // len(_NESTED)


def _in_module_order(module: str, attributes: Collection[str]) -> list[str]:
    if len(attributes) == 1:
        return list(attributes)
    if not set(attributes) <= set(_IN_MODULES):
        raise ValueError(
            f"{READER}: of several parameters of a module the names must be known, for the file "
            f"does not say which is which, got {some(sorted(attributes))} of {module} (known are "
            f"{', '.join(_IN_MODULES)}; PEFT's merge_and_unload merges into the model)"
        )
    return sorted(attributes, key=_IN_MODULES.index)


def experts_in(
    name: str, rank: int, shape_A: tuple[int, ...], shape_B: tuple[int, ...]
) -> tuple[int, int, int]:
    """``(experts, N, M)`` of a parameter, from the shapes of its factors.

    Args:
        name: of the parameter, for errors.
        rank: of each expert.
        shape_A: of ``lora_A [E*rank, N]``.
        shape_B: of ``lora_B [M, rank*E]``.

    Raises:
        ValueError: shapes that no LoRA of two or more experts has.

    """
    if len(shape_A) == len(shape_B) == 2:
        (rows, N), (M, columns) = shape_A, shape_B
        experts, rest = divmod(rows, rank)
        if rows == columns and not rest and experts > 1 and N and M:
            return experts, N, M
    raise ValueError(
        f"{READER}: the factors of {name} must be [E*{rank}, N] and [M, {rank}*E] for the config's "
        f"rank {rank} and E experts, two or more, got {list(shape_A)} and {list(shape_B)}"
    )


def split_experts(lora_A: Tensor, lora_B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``[E, rank, N]`` and ``[E, M, rank]``: what :func:`join_experts` has joined."""
    A = lora_A.reshape(-1, rank, lora_A.shape[1])
    return A, lora_B.reshape(len(lora_B), rank, -1).permute(2, 0, 1)


def check_chain(module: str, sizes: Sequence[tuple[int, int, int]]) -> None:
    """Refuse parameters of one module that cannot follow each other.

    Args:
        module: its name.
        sizes: ``(experts, N, M)`` of each parameter, in the module's order.

    Raises:
        ValueError: other numbers of experts, or widths that do not meet.

    """
    (experts, hidden, wide), (others, inside, out) = sizes[0], sizes[-1]
    fit = experts == others and hidden == out and wide in (inside, 2 * inside)
    if len(sizes) > 1 and not fit:
        text = ", ".join(f"{count} of {n} to {m}" for count, n, m in sizes)
        raise ValueError(
            f"{READER}: the experts of {module} must lead from a width to an inner one and back, "
            f"got {text} (earlier versions of PEFT took one width for the other; the version that "
            "saved it merges it into the model by merge_and_unload)"
        )
