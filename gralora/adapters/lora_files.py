"""Reads the LoRAs of PEFT, which nobody vouches for, without a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gralora.adapters.contents import BASE_LAYER, owners
from gralora.adapters.kinds import LORA_TYPE, with_other_ways
from gralora.adapters.lora_config import WHO, LoraConfig, parse_lora_config
from gralora.adapters.lora_names import check_lengths
from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.listing import some
from gralora.storage.checked_file import Entry
from gralora.storage.config_values import WHO as READER
from gralora.storage.pair import in_folder, open_pair
from gralora.storage.resolution import check_keys
from gralora.storage.tensor_file import read_tensors
from gralora.storage.tensor_names import PREFIX

_FACTORS = {".lora_A.weight": "lora_A", ".lora_B.weight": "lora_B"}


@dataclass(frozen=True)
class LoraLayer:
    """One adapted layer: ``ΔW = scaling * lora_B lora_A``.

    Attributes:
        A: ``lora_A [r, N]``, on the CPU in the file's dtype.
        B: ``lora_B [M, r]``, likewise.
        scaling: ``alpha / r``, or with rsLoRA ``alpha / sqrt(r)``.

    """

    A: Tensor
    B: Tensor
    scaling: float


@dataclass(frozen=True)
class StoredLora:
    """Everything that a LoRA's two files say.

    Attributes:
        directory: where they lie.
        config: checked.
        layers: by full module name.
        biases: trained biases, by the names that the base model has for them.
        saved: tensors of modules that were trained as a whole, likewise.

    """

    directory: Path
    config: LoraConfig
    layers: Mapping[str, LoraLayer]
    biases: Mapping[str, Tensor]
    saved: Mapping[str, Tensor]


@dataclass
class _Keys:
    factors: dict[str, dict[str, str]]
    biases: dict[str, str]
    saved: dict[str, str]
    frozen: list[str]


def read_lora(directory: str | os.PathLike[str]) -> StoredLora:
    """Read a LoRA of linear layers; keys, shapes and dtypes are checked before a tensor is read.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a damaged or hostile file, another method, a variant of LoRA, layers that are
            not linear, or tensors that disagree with the config.

    Warns:
        UserWarning: unknown fields, or copies of the base model's weights, which are left out.

    """
    folder = Path(directory)
    try:
        with open_pair(folder) as pair:
            config = parse_lora_config(pair.content)
            keys = _sort(config, pair.header.tensors)
            for name, factors in keys.factors.items():
                _check_layer(config, name, factors, pair.header.tensors)
            tensors = read_tensors(pair.file, pair.header)
    except (OSError, ValueError) as error:
        refusal = in_folder(error, folder, who=WHO)
        raise with_other_ways(refusal, folder, wanted=LORA_TYPE) from None
    if keys.frozen:
        warnings.warn(
            f"{WHO}: copies of the base model's own weights are left out: {some(keys.frozen)}",
            stacklevel=2,
        )
    return StoredLora(
        folder,
        config,
        {
            name: LoraLayer(
                tensors[factors["lora_A"]], tensors[factors["lora_B"]], config.scaling(name)
            )
            for name, factors in keys.factors.items()
        },
        {name: tensors[key] for name, key in keys.biases.items()},
        {name: tensors[key] for name, key in keys.saved.items()},
    )


def _sort(config: LoraConfig, entries: Mapping[str, Entry]) -> _Keys:
    """Say what each tensor of the file is.

    Raises:
        ValueError: a key that no LoRA of linear layers has, or no factor at all.

    """
    check_keys(entries)
    check_lengths(entries, who=READER)
    keys = _Keys({}, {}, {}, [])
    saved = names.saved_entries(
        GraLoRAConfig(modules_to_save=config.modules_to_save, task_type=config.task_type)
    )
    for key in entries:
        path = key.removeprefix(PREFIX)
        suffix = next((end for end in _FACTORS if path.endswith(end) and path != end), None)
        module, marker, rest = path.partition(BASE_LAYER)
        if suffix is not None:
            found = keys.factors.setdefault(path.removesuffix(suffix), {})
            found[_FACTORS[suffix]] = key
        elif marker and rest == "bias" and config.bias != "none":
            keys.biases[f"{module}.bias"] = key
        elif any(saved.of(owner) for owner in owners(path)):
            keys.saved[path] = key
        elif config.bias == "all" and "bias" in path.rpartition(".")[2]:
            keys.biases[path] = key
        elif path.endswith(".weight") and ".lora_" not in path:
            keys.frozen.append(key)
        else:
            raise ValueError(
                f"{READER}: each tensor must be lora_A or lora_B of a linear layer, a trained bias "
                f"or part of a module to save, got {key!r:.300}"
            )
    if not keys.factors:
        raise ValueError(f"{READER}: the file must hold factors of a LoRA, got {some(entries)}")
    return keys


def _check_layer(
    config: LoraConfig, name: str, factors: Mapping[str, str], entries: Mapping[str, Entry]
) -> None:
    if len(factors) != len(_FACTORS):
        raise ValueError(
            f"{READER}: {name} must have lora_A and lora_B, got only {', '.join(factors)}"
        )
    rank = config.rank(name)
    shapes = {factor: entries[key].shape for factor, key in factors.items()}
    for factor, axis in (("lora_A", 0), ("lora_B", 1)):
        shape, entry = shapes[factor], entries[factors[factor]]
        if len(shape) != 2:
            raise ValueError(
                f"{READER}: {factors[factor]} must have two sizes, got {list(shape)} (convolutions "
                "have more, and are no linear layers)"
            )
        if shape[axis] != rank or 0 in shape:
            raise ValueError(
                f"{READER}: {factor} of {name} must have the config's rank {rank} at axis {axis} "
                f"and no size 0, got {list(shape)}"
            )
        if not entry.dtype.is_floating_point:
            raise ValueError(f"{READER}: {factors[factor]} must be floating, got {entry.dtype}")
