"""inspect_adapter: what each layer of an adapter is, and what training has made of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gralora.adapters.expert_layers import as_layers
from gralora.adapters.room import check_room
from gralora.adapters.spectrum import memory_of_spectrum, spectrum
from gralora.adapters.stored import StoredAdapter, StoredLayer, read_with_experts
from gralora.nn.spec import AdapterSpec


@dataclass(frozen=True)
class LayerReport:
    """One adapted layer.

    Attributes:
        in_features: ``N``.
        out_features: ``M``.
        spec: rank, grid and scale.
        dtype: of the factors, such as ``"float32"``.
        parameters: numbers in the factors.
        norm: Frobenius norm of ΔW.
        block_norms: of each block, ``k_out`` rows of ``k_in`` numbers.
        largest_rank: that ΔW can have with this grid, rank and size.
        entropy_rank: effective rank by the entropy of the singular values (Roy and Vetterli 2007).
        energy_rank: fewest singular values that hold 99% of the squared norm.

    """

    in_features: int
    out_features: int
    spec: AdapterSpec
    dtype: str
    parameters: int
    norm: float
    block_norms: tuple[tuple[float, ...], ...]
    largest_rank: int
    entropy_rank: float
    energy_rank: int

    @property
    def spread(self) -> float:
        """Largest over smallest block norm; infinite where a block is zero, 1 where all are."""
        norms = [norm for row in self.block_norms for norm in row]
        if not max(norms):
            return 1.0
        return max(norms) / min(norms) if min(norms) else math.inf

    @property
    def block_rms(self) -> tuple[tuple[float, ...], ...]:
        """Root mean square of ΔW's numbers in each block, comparable between layers."""
        k_out, k_in = self.spec.k_out, self.spec.k_in
        count = (self.out_features // k_out) * (self.in_features // k_in)
        return tuple(tuple(norm / math.sqrt(count) for norm in row) for row in self.block_norms)


@dataclass(frozen=True)
class AdapterReport:
    """A whole adapter.

    Attributes:
        directory: where it lies.
        base_model: name of the model that it was trained on, where that was known.
        layers: by full module name, in the order of their numbers; of fused experts each expert's
            own, with its number before the parameter's name (``mlp.experts.3.down_proj``).
        other_parameters: numbers in trained biases and whole modules.

    """

    directory: Path
    base_model: str | None
    layers: dict[str, LayerReport]
    other_parameters: int

    @property
    def parameters(self) -> int:
        """All trained numbers."""
        return sum(layer.parameters for layer in self.layers.values()) + self.other_parameters

    @property
    def norm(self) -> float:
        """Frobenius norm of all ΔW together."""
        return math.hypot(*(layer.norm for layer in self.layers.values()))


def inspect_adapter(
    adapter: str | os.PathLike[str] | StoredAdapter,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> AdapterReport:
    """Measure an adapter, layer by layer.

    Norms and effective ranks are exact up to float64 rounding, and no ΔW is formed: each comes from
    thin QR decompositions of the factors and the singular values of a matrix about as large as
    ``k*r`` (see :mod:`gralora.adapters.spectrum`).

    Args:
        adapter: its folder, or what :func:`read_adapter` gave.
        progress: called with the number of layers done and that of all.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: as :func:`read_adapter`, but for fused experts; factors with an Inf or NaN.
        MemoryError: too little memory is free for the decompositions of a layer.

    """
    stored = (
        adapter if isinstance(adapter, StoredAdapter) else read_with_experts(adapter, safe=True)
    )
    found = {**stored.layers, **as_layers(stored.experts)}
    needed = max(map(memory_of_spectrum, found.values()))
    check_room(needed, "the singular values of each layer", who="inspect_adapter")
    layers = {}
    for done, name in enumerate(sorted(found, key=_by_numbers), 1):
        layers[name] = _measured(found[name])
        if progress is not None:
            progress(done, len(found))
    others = [*stored.biases.values(), *stored.saved.values()]
    return AdapterReport(
        stored.directory,
        stored.config.base_model_name_or_path,
        layers,
        sum(tensor.numel() for tensor in others),
    )


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Key that sorts layer 2 before layer 10."""
    parts = name.split(".")
    return [(int(p), "") if p.isascii() and p.isdigit() and len(p) < 10 else (-1, p) for p in parts]


def _measured(layer: StoredLayer) -> LayerReport:
    found, spec = spectrum(layer), layer.spec
    return LayerReport(
        in_features=layer.in_features,
        out_features=layer.out_features,
        spec=spec,
        dtype=str(layer.A.dtype).removeprefix("torch."),
        parameters=sum(factor.numel() for factor in layer.factors if factor is not None),
        norm=found.norm,
        block_norms=found.block_norms,
        largest_rank=_largest_rank(layer),
        entropy_rank=found.entropy_rank,
        energy_rank=found.energy_rank,
    )


def _largest_rank(layer: StoredLayer) -> int:
    """Rank of ΔW for factors in general position.

    A row of blocks shares no ranks with another, and reaches at most r and at most its height;
    likewise for columns; a plain part adds r0.
    """
    spec, n, m = layer.spec, layer.A.shape[1], layer.B.shape[2]
    rows = spec.k_out * min(spec.k_in * spec.s, m)
    columns = spec.k_in * min(spec.k_out * spec.s, n)
    return min(min(rows, columns) + spec.hybrid_r, layer.in_features, layer.out_features)
