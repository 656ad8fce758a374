"""Where a checkpoint has the matrices that an adapter changes.

A layer's is its weight. Fused experts are one tensor in some checkpoints; most have each expert's
matrices one by one, gate and up apart, which transformers joins on loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gralora.adapters.expert_layers import halves
from gralora.adapters.stored import StoredAdapter, StoredExperts, StoredLayer
from gralora.checkpoints.layout import Layout, are_experts_transposed, is_transposed
from gralora.checkpoints.names import EXPERT_BLOCKS, Renaming, find_renaming
from gralora.checkpoints.paths import WHO
from gralora.injection.listing import some
from gralora.storage.checked_file import Entry

_WEIGHT = ".weight"
# How checkpoints name one expert's matrices: those that a parameter is made of, upper rows first.
# Source: the weight conversions of transformers 5.
_SCHEMES: tuple[tuple[str, str, Mapping[str, tuple[str, ...]]], ...] = (
    (
        "",
        "",
        {
            "gate_up_proj": ("gate_proj", "up_proj"),
            "up_proj": ("up_proj",),
            "down_proj": ("down_proj",),
        },
    ),
    ("", "", {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}),
    (
        f"{EXPERT_BLOCKS[0]}experts",
        f"{EXPERT_BLOCKS[1]}experts",
        {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)},
    ),
)


@dataclass(frozen=True)
class Matrix:
    """What is added to one tensor of a checkpoint.

    Attributes:
        module: its name by the adapter's prefixes, without the ``.weight`` of a layer's.
        layer: the factors.

    """

    module: str
    layer: StoredLayer | StoredExperts

    def key(self, renaming: Renaming) -> str:
        """The tensor's name in the checkpoint."""
        name = renaming(self.module)
        return name if isinstance(self.layer, StoredExperts) else f"{name}{_WEIGHT}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that shape can be the one."""
        if isinstance(self.layer, StoredExperts):
            one = self.layer.layers[0]
            experts: tuple[int, ...] = (len(self.layer.A),)
        else:
            one, experts = self.layer, ()
        sizes = (one.out_features, one.in_features)
        return shape in ((*experts, *sizes), (*experts, *sizes[::-1]))

    def is_transposed(
        self, entry: Entry, config: Mapping[str, Any] | None, layout: Layout | None
    ) -> bool:
        """Whether the checkpoint has it, or each of its experts, as ``[N, M]``.

        Raises:
            ValueError: another shape, or nothing tells.

        """
        layer = self.layer
        if isinstance(layer, StoredLayer):
            sizes = (layer.out_features, layer.in_features)
            return is_transposed(self.module, sizes, entry.shape, config, layout)
        one = layer.layers[0]
        of_all = (len(layer.A), one.out_features, one.in_features)
        return are_experts_transposed(self.module, of_all, entry.shape, config, layout)


def find_matrices(
    adapter: StoredAdapter, tensors: Mapping[str, Entry]
) -> tuple[Renaming, list[Matrix]]:
    """Say which tensors of a checkpoint an adapter is added to.

    Args:
        adapter: of layers, fused experts or both.
        tensors: of the checkpoint.

    Returns:
        The change of prefixes, under which every matrix has its tensor, and the matrices.

    Raises:
        ValueError: some have none, or another number of experts.

    """
    layers = [Matrix(name, layer) for name, layer in adapter.layers.items()]
    # What has no name of a layer's weight gets one for the search.
    searched = {
        key if key.endswith(_WEIGHT) and len(entry.shape) != 3 else f"{key}{_WEIGHT}": entry
        for key, entry in tensors.items()
        if key.endswith(_WEIGHT) or len(entry.shape) == 3
    }
    refusal: ValueError | None = None
    for experts in _ways(adapter.experts):
        by_name = {matrix.module: matrix for matrix in (*layers, *experts)}

        def fits(module: str, key: str, by_name: Mapping[str, Matrix] = by_name) -> bool:
            return by_name[module].fits(searched[key].shape)

        try:
            renaming = find_renaming(by_name.keys(), searched.keys(), fits)
        except ValueError as error:
            refusal = refusal or error
            continue
        _check_experts(adapter.experts, experts, renaming, tensors)
        return renaming, list(by_name.values())
    assert refusal is not None
    raise refusal


def _ways(experts: Mapping[str, StoredExperts]) -> Iterator[list[Matrix]]:
    """Matrices of fused experts as checkpoints may have them."""
    yield [Matrix(name, stored) for name, stored in experts.items()]
    attributes = {name.rpartition(".")[2] for name in experts}
    for old, new, parts in _SCHEMES:
        if attributes and attributes <= parts.keys():
            yield [
                matrix
                for name, stored in experts.items()
                for matrix in _one_by_one(name, stored, old, new, parts)
            ]


def _one_by_one(
    name: str, stored: StoredExperts, old: str, new: str, parts: Mapping[str, tuple[str, ...]]
) -> Iterator[Matrix]:
    owner, _, attribute = name.rpartition(".")
    if old and owner.endswith(old):
        owner = owner.removesuffix(old) + new
    names = parts[attribute]
    for number, layer in enumerate(stored.layers):
        # An odd number of outputs has no halves, and fits no such checkpoint.
        divided = len(names) == 2 and layer.out_features % 2 == 0
        pieces = halves(layer) if divided else (layer,)
        for part, piece in zip(names, pieces, strict=False):
            yield Matrix(f"{owner}.{number}.{part}", piece)


def _check_experts(
    experts: Mapping[str, StoredExperts],
    matrices: list[Matrix],
    renaming: Renaming,
    tensors: Mapping[str, Entry],
) -> None:
    """Refuse a checkpoint with more experts than the adapter has, or matrices of other shapes."""
    if not any(isinstance(matrix.layer, StoredLayer) for matrix in matrices):
        return
    count = max(len(stored.A) for stored in experts.values())
    beyond = []
    for matrix in matrices:
        assert isinstance(matrix.layer, StoredLayer)
        key = matrix.key(renaming)
        sizes = (matrix.layer.out_features, matrix.layer.in_features)
        if tensors[key].shape != sizes:
            raise ValueError(
                f"{WHO}: the adapter must fit the base model, got {key} with "
                f"{list(tensors[key].shape)} for an adapter of [M, N] = {list(sizes)}"
            )
        owner, _, part = matrix.module.rpartition(".")
        stem = renaming(f"{owner.rpartition('.')[0]}.{count}.{part}")
        if f"{stem}{_WEIGHT}" in tensors:
            beyond.append(f"{stem}{_WEIGHT}")
    if beyond:
        raise ValueError(
            f"{WHO}: the adapter must have the base model's number of experts, got {count} and "
            f"more in the base: {some(sorted(set(beyond)))}"
        )
