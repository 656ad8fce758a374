"""An adapter as its files have it, without the model that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gralora import functional
from gralora.adapters.contents import Contents, sort_tensors
from gralora.adapters.kinds import with_other_ways
from gralora.injection.listing import some
from gralora.nn.spec import AdapterSpec
from gralora.storage.pair import in_folder, open_pair
from gralora.storage.rslora import restore_alpha
from gralora.storage.stored_config import StoredConfig, parse_config
from gralora.storage.tensor_file import read_tensors

WHO = "read_adapter"


@dataclass(frozen=True)
class StoredLayer:
    """One adapted layer.

    Attributes:
        spec: rank, grid and scale.
        A: ``[k_in, n, k_out*s]``, on the CPU in the file's dtype, like the others.
        B: ``[k_out, k_in*s, m]``.
        lora_A: ``[r0, N]`` of a hybrid, or None.
        lora_B: ``[M, r0]`` of a hybrid, or None.

    """

    spec: AdapterSpec
    A: Tensor
    B: Tensor
    lora_A: Tensor | None = None  # noqa: N815  (a name of the mathematics)
    lora_B: Tensor | None = None  # noqa: N815

    @property
    def in_features(self) -> int:
        """``N`` of the layer."""
        return self.A.shape[0] * self.A.shape[1]

    @property
    def out_features(self) -> int:
        """``M`` of the layer."""
        return self.B.shape[0] * self.B.shape[2]

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """``(A, B, lora_A, lora_B)``, as the operators take them."""
        return self.A, self.B, self.lora_A, self.lora_B

    def delta(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Weight difference ``[M, N]``.

        Args:
            dtype: the factors are cast to it first; None means their own.
            device: where it is computed and left; None means the CPU.

        """
        A, B, lora_A, lora_B = (
            None if factor is None else factor.to(device=device, dtype=dtype)
            for factor in self.factors
        )
        return functional.delta_weight(
            A, B, scaling=self.spec.scaling, lora_A=lora_A, lora_B=lora_B
        )


@dataclass(frozen=True)
class StoredExperts:
    """The adapters of one fused parameter.

    Attributes:
        spec: of each expert's.
        A: ``[E, k_in, n, k_out*s]``, on the CPU in the file's dtype, like the others.
        B: ``[E, k_out, k_in*s, m]``.
        lora_A: ``[E, r0, N]`` of hybrids, or None.
        lora_B: ``[E, M, r0]`` of hybrids, or None.

    """

    spec: AdapterSpec
    A: Tensor
    B: Tensor
    lora_A: Tensor | None = None  # noqa: N815  (a name of the mathematics)
    lora_B: Tensor | None = None  # noqa: N815

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """``(A, B, lora_A, lora_B)`` of all experts."""
        return self.A, self.B, self.lora_A, self.lora_B

    @property
    def layers(self) -> list[StoredLayer]:
        """Each expert's adapter, as that of a layer."""
        return [
            StoredLayer(
                self.spec,
                self.A[expert],
                self.B[expert],
                None if self.lora_A is None else self.lora_A[expert],
                None if self.lora_B is None else self.lora_B[expert],
            )
            for expert in range(len(self.A))
        ]


@dataclass(frozen=True)
class StoredAdapter:
    """Everything that an adapter's two files say.

    Attributes:
        directory: where they lie.
        config: checked.
        layers: adapted layers by their full module names.
        biases: trained biases, by the names that the base model has for them
            (``model.layers.0.self_attn.q_proj.bias``).
        saved: tensors of modules that were trained as a whole, likewise by full tensor names.
        frozen: tensors that PEFT has copied from the base model, likewise. They say nothing new:
            whoever has the base can compare them.
        experts: adapters of fused experts, by full parameter names, those of one module in its own
            order. :func:`read_adapter` gives none.

    """

    directory: Path
    config: StoredConfig
    layers: Mapping[str, StoredLayer]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    experts: Mapping[str, StoredExperts] = field(default_factory=dict)


def read_adapter(directory: str | os.PathLike[str], *, safe: bool = False) -> StoredAdapter:
    """Read an adapter of PEFT, of :func:`gralora.save_adapter` or of the method's authors' fork.

    The files need not be trusted: keys, shapes and dtypes are checked against the config and one
    another before a tensor is read. Whether the adapter fits a model is for whoever has one to say.

    Args:
        directory: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        safe: refuse tensors with an Inf or NaN.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a damaged or hostile file, a config of another method, tensors that disagree
            with the config, fused experts; with `safe`, a number that is not finite.
        TypeError: factors of integers.

    Warns:
        UserWarning: unknown fields in the config.

    """
    stored = read_with_experts(directory, safe=safe)
    if stored.experts:
        raise ValueError(
            f"{WHO}: {stored.directory}: an adapter must be of linear layers here, got fused "
            f"experts in {some(stored.experts)} (gralora.load_adapter, load_into, "
            "merge_checkpoint, combine, inspect_adapter and export_lora take them)"
        )
    return stored


def read_with_experts(directory: str | os.PathLike[str], *, safe: bool = False) -> StoredAdapter:
    """As :func:`read_adapter`, for callers that know what to do with fused experts."""
    folder = Path(directory)
    try:
        with open_pair(folder) as pair:
            config = restore_alpha(parse_config(pair.content), pair.header.metadata)
            contents = sort_tensors(config, pair.header.tensors)
            tensors = read_tensors(pair.file, pair.header)
    except (OSError, ValueError, TypeError) as error:
        raise with_other_ways(in_folder(error, folder, who=WHO), folder) from None
    if safe:
        _check_finite(folder, tensors)
    return _assemble(folder, config, contents, tensors)


def _assemble(
    folder: Path, config: StoredConfig, contents: Contents, tensors: Mapping[str, Tensor]
) -> StoredAdapter:
    def named(keys: Mapping[str, str]) -> dict[str, Tensor]:
        return {name: tensors[key] for name, key in keys.items()}

    return StoredAdapter(
        folder,
        config,
        {
            name: StoredLayer(contents.specs[name], **named(keys))
            for name, keys in contents.factors.items()
        },
        named(contents.biases),
        named(contents.saved),
        named(contents.frozen),
        {
            name: StoredExperts(contents.specs[name], **named(contents.experts[name]))
            for name in config.target_parameters
        },
    )


def _check_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    broken = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if broken:
        raise ValueError(
            f"{WHO}: {folder}: all numbers must be finite, got an Inf or NaN in "
            f"{len(broken)} of {len(tensors)} tensors: {some(broken)}"
        )
