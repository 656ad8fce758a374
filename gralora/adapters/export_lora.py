"""export_lora: an adapter as the plain LoRA that computes the same, for whoever knows only LoRA."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gralora.adapters.contents import BASE_LAYER
from gralora.adapters.destination import check_out, made
from gralora.adapters.expert_layers import layers_of
from gralora.adapters.lora_experts import join_experts, names_in_files
from gralora.adapters.lora_names import check_lengths, write_pattern, write_targets
from gralora.adapters.room import check_room
from gralora.adapters.stored import StoredAdapter, StoredLayer, read_with_experts
from gralora.adapters.windows import scaled, window
from gralora.storage.pair import write_pair
from gralora.storage.tensor_names import PREFIX

WHO = "export_lora"
# What --max-lora-rank of vLLM takes (MaxLoRARanks in vllm/config/lora.py, version 0.11), but for 1,
# which older versions lack.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

# Bytes for each number of lora_B while it is scaled in float64: at most 20 were measured.
_MEANWHILE = 24


@dataclass(frozen=True)
class LoraExport:
    """What :func:`export_lora` wrote.

    Attributes:
        directory: the LoRA's folder.
        ranks: by full module name, and by that of a parameter with fused experts.
        dtypes: of the factors, each once, such as ``("bfloat16",)``.
        max_lora_rank: smallest ``--max-lora-rank`` of vLLM that takes it; None where none does.
        obstacles: why vLLM does not take it, one sentence each; empty where it does.

    """

    directory: Path
    ranks: Mapping[str, int]
    dtypes: tuple[str, ...]
    max_lora_rank: int | None
    obstacles: tuple[str, ...]

    @property
    def rank(self) -> int:
        """The largest rank of all layers."""
        return max(self.ranks.values())


def export_lora(
    adapter: str | os.PathLike[str] | StoredAdapter,
    out: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LoraExport:
    """Write the LoRA whose ΔW is an adapter's, without any decomposition.

    Each block of the grid becomes s rows of ``lora_A [rank, N]``, nonzero in the block's columns
    only, and s columns of ``lora_B [M, rank]``, nonzero in its rows only; a hybrid's plain part
    comes behind. The rank is ``k_out*k_in*s + r0``, that is ``k*r + r0`` for a square grid. The
    scale is multiplied into lora_B, and ``lora_alpha`` is the rank, so that PEFT and others scale
    by one. ``r`` of the config is the largest rank, ``rank_pattern`` names the layers that differ.

    Fused experts become a LoRA of PEFT's ``target_parameters``, with that rank for each expert.

    Args:
        adapter: its folder, or what :func:`read_adapter` gave.
        out: the LoRA's folder, absent or empty; a killed process leaves the earlier LoRA of that
            folder or the new one.
        adapter_name: PEFT saves the adapter "default" in the folder itself, and one of another name
            in a folder of that name within it.
        dtype: of both factors. None keeps each factor's own, so that every number is the adapter's,
            but for lora_B in float32 where the dtype has 16 bits and does not hold the scaled
            numbers exactly.
        overwrite: replace the LoRA or adapter that `out` holds; never in the folder of a model.
        progress: called with the number of layers done and that of all.

    Returns:
        Ranks, and what a server needs to know.

    Raises:
        OSError: files cannot be read or written; `out` holds files.
        TypeError: `dtype` is not floating.
        ValueError: as :func:`read_adapter`; `out` is the adapter's own folder; numbers that
            overflow when they are scaled or rounded.
        MemoryError: too little memory is free for the LoRA.

    """
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"{WHO}: dtype must be floating, got {dtype}")
    stored = _opened(adapter, adapter_name)
    folder = Path(out)
    if folder.exists() and folder.samefile(stored.directory):
        raise ValueError(f"{WHO}: out must be another folder than the adapter's, got {folder}")
    check_out(folder, overwrite=overwrite, who=WHO)
    check_lengths((*stored.layers, *stored.experts), who=WHO)
    parts = layers_of(stored)
    check_room(_memory(parts, dtype), "the LoRA", who=WHO)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    in_files = names_in_files(list(stored.experts))
    for done, (name, layers) in enumerate(parts.items(), 1):
        factors = [_factors(name, layer, dtype) for layer in layers]
        ranks[name] = factors[0][0].shape[0]
        lora_A, lora_B = join_experts(factors) if name in in_files else factors[0]
        stem = PREFIX + in_files.get(name, name)
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = lora_A, lora_B
        if progress is not None:
            progress(done, len(parts))
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    for name, value in stored.biases.items():
        module, _, attribute = name.rpartition(".")
        inner = BASE_LAYER if module in stored.layers else "."
        tensors[PREFIX + module + inner + attribute] = value
    for name, value in stored.saved.items():
        tensors[PREFIX + name] = value
    with made(folder):
        write_pair(folder, _config(stored, ranks), tensors, {})
    return LoraExport(
        folder, ranks, tuple(dtypes), _max_lora_rank(ranks), _obstacles(stored, ranks)
    )


def _opened(adapter: str | os.PathLike[str] | StoredAdapter, adapter_name: str) -> StoredAdapter:
    if isinstance(adapter, StoredAdapter):
        return adapter
    if adapter_name == "default":
        return read_with_experts(adapter)
    if Path(adapter_name).name != adapter_name or adapter_name in ("", ".."):
        raise ValueError(f"{WHO}: adapter_name must be the name of a folder, got {adapter_name!r}")
    return read_with_experts(Path(adapter) / adapter_name)


def _memory(parts: Mapping[str, list[StoredLayer]], dtype: torch.dtype | None) -> int:
    """Bytes of all factors that will be written, and what those of one layer take meanwhile."""
    kept, meanwhile = 0, 0
    for layers in parts.values():
        sizes = [_bytes(layer, dtype) for layer in layers]
        written = sum(size for size, _ in sizes)
        kept += written
        # Experts lie beside each other before they are joined.
        beside = written if len(layers) > 1 else 0
        meanwhile = max(meanwhile, beside + max(scaling for _, scaling in sizes))
    return kept + meanwhile


def _bytes(layer: StoredLayer, dtype: torch.dtype | None) -> tuple[int, int]:
    """What a layer's factors take that will be written, and what scaling them takes."""
    spec = layer.spec
    rank = spec.k_out * spec.k_in * spec.s + spec.hybrid_r
    of_A, of_B = (
        (dtype or factor.dtype).itemsize * width
        for factor, width in ((layer.A, layer.in_features), (layer.B, layer.out_features))
    )
    if dtype is None:
        of_B = max(of_B, torch.float32.itemsize * layer.out_features)
    return rank * (of_A + of_B), _MEANWHILE * rank * layer.out_features


def _factors(name: str, layer: StoredLayer, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """``lora_A [rank, N]`` and ``lora_B [M, rank]`` of one layer, the scale in lora_B."""
    left, right = window(layer, range(layer.out_features), range(layer.in_features))
    if dtype is None:
        return right, scaled(left, layer.spec.scaling, who=f"{WHO}: {name}")
    lora_B = left.double() * layer.spec.scaling
    rounded = right.to(dtype), lora_B.to(dtype)
    for exact, result in zip((right, lora_B), rounded, strict=True):
        if not torch.equal(exact.isfinite(), result.isfinite()):
            raise ValueError(
                f"{WHO}: the factors of {name} must fit dtype, got numbers up to "
                f"{float(exact.abs().max()):g} for {dtype}"
            )
    return rounded


def _config(stored: StoredAdapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    config, rank = stored.config, max(ranks.values())
    # Servers refuse the setting, also where the model has no biases that it could mean.
    bias = config.bias if stored.biases else "none"
    pattern = write_pattern({n: r for n, r in ranks.items() if r != rank}, ranks.keys())
    experts: dict[str, Any] = {}
    if stored.experts:
        # Its wrapper of parameters refuses dropout, which matters in training alone.
        experts = {"target_parameters": list(stored.experts), "lora_dropout": 0.0}
    return {
        "alpha_pattern": pattern,
        "auto_mapping": None,
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": "lora_only" if bias == "gralora_only" else bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": rank,
        "lora_dropout": config.dropout,
        "modules_to_save": sorted(config.modules_to_save) or None,
        "peft_type": "LORA",
        "peft_version": None,
        "r": rank,
        "rank_pattern": pattern,
        "revision": None,
        "target_modules": write_targets(
            stored.layers.keys(), as_list=not isinstance(config.target_modules, str)
        ),
        "task_type": config.task_type,
        "use_dora": False,
        "use_rslora": False,
        **experts,
    }


def _max_lora_rank(ranks: Mapping[str, int]) -> int | None:
    rank = max(ranks.values())
    return next((accepted for accepted in VLLM_RANKS if accepted >= rank), None)


def _obstacles(stored: StoredAdapter, ranks: Mapping[str, int]) -> tuple[str, ...]:
    found = []
    if _max_lora_rank(ranks) is None:
        found.append(
            f"the rank {max(ranks.values())} is above {VLLM_RANKS[-1]}, vLLM's largest "
            "--max-lora-rank; merge the adapter into the model instead"
        )
    if stored.experts:
        found.append(
            "the adapter has fused experts, which are written for PEFT's target_parameters and "
            "were never tried with vLLM; merge the adapter into the model instead"
        )
    if stored.config.modules_to_save or stored.saved:
        found.append(
            "the adapter has whole modules (modules_to_save), which vLLM does not take; merge the "
            "adapter into the model instead"
        )
    if stored.biases:
        found.append(
            "the adapter has trained biases, which vLLM does not take; merge the adapter into the "
            "model instead"
        )
    return tuple(found)
