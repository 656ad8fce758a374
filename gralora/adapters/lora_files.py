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
from gralora.adapters.lora_experts import (
    check_chain,
    experts_in,
    parameters_in_files,
    split_experts,
)
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
class LoraExperts:
    """The LoRA of one fused parameter: ``ΔW[e] = scaling * lora_B[e] lora_A[e]``.

    Attributes:
        A: ``[E, r, N]``, on the CPU in the file's dtype.
        B: ``[E, M, r]``, likewise.
        scaling: as that of a layer.

    """

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def layers(self) -> list[LoraLayer]:
        """Each expert's, as that of a layer."""
        return [LoraLayer(A, B, self.scaling) for A, B in zip(self.A, self.B, strict=True)]


@dataclass(frozen=True)
class StoredLora:
    """Everything that a LoRA's two files say.

    Attributes:
        directory: where they lie.
        config: checked.
        layers: by full module name.
        biases: trained biases, by the names that the base model has for them.
        saved: tensors of modules that were trained as a whole, likewise.
        experts: by full name of the parameter, those of one module in its own order.

    """

    directory: Path
    config: LoraConfig
    layers: Mapping[str, LoraLayer]
    biases: Mapping[str, Tensor]
    saved: Mapping[str, Tensor]
    experts: Mapping[str, LoraExperts]


@dataclass
class _Keys:
    # By the name of a layer, and of a parameter.
    factors: dict[str, dict[str, str]]
    experts: dict[str, dict[str, str]]
    biases: dict[str, str]
    saved: dict[str, str]
    frozen: list[str]


def read_lora(directory: str | os.PathLike[str]) -> StoredLora:
    """Read a LoRA of linear layers and fused experts; all is checked before a tensor is read.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a damaged or hostile file, another method, a variant of LoRA, layers that are
            not linear, tensors that disagree with the config, or experts whose parameters the file
            does not tell apart.

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
            _check_experts(config, keys.experts, pair.header.tensors)
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
        {name: _experts(config, name, keys.experts[name], tensors) for name in keys.experts},
    )


def _experts(
    config: LoraConfig, name: str, factors: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> LoraExperts:
    A, B = (tensors[factors[factor]] for factor in ("lora_A", "lora_B"))
    return LoraExperts(*split_experts(A, B, config.rank(name)), config.scaling(name))


def _sort(config: LoraConfig, entries: Mapping[str, Entry]) -> _Keys:
    """Say what each tensor of the file is.

    Raises:
        ValueError: a key that no LoRA of linear layers or experts has, or no factor at all.

    """
    check_keys(entries)
    check_lengths(entries, who=READER)
    keys = _Keys({}, {}, {}, {}, [])
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
    parameters = parameters_in_files(keys.factors, config.target_parameters)
    keys.experts = {name: keys.factors.pop(stem) for stem, name in parameters.items()}
    return keys


def _check_layer(
    config: LoraConfig, name: str, factors: Mapping[str, str], entries: Mapping[str, Entry]
) -> None:
    _check_pair(name, factors, entries)
    rank = config.rank(name)
    shapes = {factor: entries[key].shape for factor, key in factors.items()}
    for factor, axis in (("lora_A", 0), ("lora_B", 1)):
        shape = shapes[factor]
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


def _check_experts(
    config: LoraConfig, experts: Mapping[str, Mapping[str, str]], entries: Mapping[str, Entry]
) -> None:
    of_module: dict[str, list[tuple[int, int, int]]] = {}
    for name, factors in experts.items():
        _check_pair(name, factors, entries)
        shapes = [entries[factors[factor]].shape for factor in ("lora_A", "lora_B")]
        sizes = experts_in(name, config.rank(name), *shapes)
        of_module.setdefault(name.rpartition(".")[0], []).append(sizes)
    for module, all_sizes in of_module.items():
        check_chain(module, all_sizes)


def _check_pair(name: str, factors: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    if len(factors) != len(_FACTORS):
        raise ValueError(
            f"{READER}: {name} must have lora_A and lora_B, got only {', '.join(factors)}"
        )
    for key in factors.values():
        if not entries[key].dtype.is_floating_point:
            raise ValueError(f"{READER}: {key} must be floating, got {entries[key].dtype}")
