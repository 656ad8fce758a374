"""combine: the weighted sum of several adapters as one adapter."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gralora.adapters.concatenation import concatenate
from gralora.adapters.destination import check_out
from gralora.adapters.expert_layers import as_experts, in_order, layers_of
from gralora.adapters.stored import StoredAdapter, StoredLayer, read_with_experts
from gralora.adapters.sums import Part, relative_error
from gralora.adapters.truncation import truncate
from gralora.adapters.words import by
from gralora.adapters.write import why_not_peft, write_adapter
from gralora.injection.listing import some
from gralora.nn.spec import AdapterSpec

WHO = "combine"
T = TypeVar("T")

Source = str | os.PathLike[str] | StoredAdapter


@dataclass(frozen=True)
class Combined:
    """What :func:`combine` wrote.

    Attributes:
        directory: the adapter's folder.
        specs: what each layer is, by full module name, and the adapters of all experts of a
            parameter, by its full name.
        errors: likewise, Frobenius norm of the difference to the sum over that of the sum, of all
            experts together, measured on the factors as they are written: for ranks side by side
            the rounding of scaled numbers, otherwise what was cut off.
        parameters: which of the names are those of parameters with fused experts.

    """

    directory: Path
    specs: Mapping[str, AdapterSpec]
    errors: Mapping[str, float]
    parameters: tuple[str, ...] = ()

    @property
    def peft_loads(self) -> bool:
        """Whether the files are PEFT's own format, and not the extension of it."""
        return why_not_peft(self.specs, self.parameters) is None


def combine(
    adapters: Sequence[Source],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    k: int | tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Combined:
    """Write one adapter whose ΔW is ``Σ weights[a] * ΔW_a``.

    Without `rank`, the ranks of each block are put side by side: exact, and the result's r and
    hybrid_r are the sums of the parts'. That needs equal grids. Where all layers have one square
    grid, those with a smaller sum than others are filled up with zeros, since PEFT's format has one
    r for all; training does not move these. With `rank`, each block becomes the
    best approximation of sub-rank ``rank / k_in`` (Eckart and Young), a plain part included, by a
    decomposition of the block's factors; one that has no more ranks than that loses nothing, and
    zeros fill up the others, so that the result has a model's rank.

    A layer that only some of the adapters have is the sum of those. Adapters of fused experts are
    summed expert by expert, in the same ways.

    Args:
        adapters: folders, or what :func:`read_adapter` gave; at least one.
        out: the result's folder, absent or empty.
        weights: one for each adapter; None means 1 for each.
        rank: exactly r of the result, a multiple of its ``k_in``; it may be above the sum of ranks.
        k: its grid, with `rank` only; None keeps that of each layer, and where the adapters differ
            takes the finest of their grids per axis.
        overwrite: replace the adapter that `out` holds, which may be one of `adapters`; never in
            the folder of a model.
        progress: called with the number of layers done and that of all.

    Returns:
        The result's ranks and errors.

    Raises:
        OSError: files cannot be read or written; `out` holds files.
        TypeError: wrong kinds of arguments.
        ValueError: as :func:`read_adapter`, but for fused experts; different grids without `rank`;
            layers of one name and different widths, or parameters of different numbers of experts;
            a module of which no adapter has all the parameters that are adapted, so that their
            order is not known; trained biases or whole modules, which are values and no
            differences, so that their sum is not defined; an Inf or NaN.
        MemoryError: too little memory is free for a block's factors side by side.

    Warns:
        UserWarning: the adapters name different base models, or PEFT cannot load the result.

    """
    if not adapters:
        raise ValueError(f"{WHO}: adapters must name at least one, got none")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise TypeError(f"{WHO}: rank must be an int, got {rank!r}")
    if rank is None and k is not None:
        raise ValueError(f"{WHO}: k must come with a rank, got k={k} and no rank")
    factors = _checked_weights(weights, len(adapters))
    folder = check_out(out, overwrite=overwrite, who=WHO)
    stored = [a if isinstance(a, StoredAdapter) else _read(a) for a in adapters]
    _check_whole_values(stored)
    sums = _sums(stored, factors)
    parameters = in_order([list(adapter.experts) for adapter in stored], who=WHO)
    dropout = _agreed([adapter.config.dropout for adapter in stored], 0.0)
    grid = (k, k) if isinstance(k, int) else k
    make: Callable[..., StoredLayer]
    if rank is None:
        make = _concatenation(sums, for_peft=not parameters)
    else:
        make = partial(truncate, rank=rank, grid=grid)
    results, errors = {}, {}
    for done, (name, each) in enumerate(sums.items(), 1):
        results[name] = [make(name, part, dropout=dropout, who=WHO) for part in each]
        errors[name] = relative_error(*zip(each, results[name], strict=True))
        if progress is not None:
            progress(done, len(sums))
    write_adapter(
        folder,
        {name: layer for name, (layer, *_) in results.items() if name not in parameters},
        experts={name: as_experts(results[name]) for name in parameters},
        base_model_name_or_path=_base(stored),
        task_type=_agreed([adapter.config.task_type for adapter in stored], None),
    )
    specs = {name: each[0].spec for name, each in results.items()}
    return Combined(folder, specs, errors, tuple(parameters))


def _read(adapter: str | os.PathLike[str]) -> StoredAdapter:
    return read_with_experts(adapter, safe=True)


def _checked_weights(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ValueError(
            f"{WHO}: weights must be one for each adapter, got {len(weights)} for {count}"
        )
    for weight in weights:
        if not math.isfinite(weight) or weight == 0:
            raise ValueError(
                f"{WHO}: weights must be finite numbers other than zero, got {weight} (leave out "
                "what does not count)"
            )
    return weights


def _check_whole_values(stored: Sequence[StoredAdapter]) -> None:
    for adapter in stored:
        if adapter.biases or adapter.saved:
            what = "trained biases" if adapter.biases else "whole modules (modules_to_save)"
            raise ValueError(
                f"{WHO}: adapters must have factors alone, since other tensors are values and no "
                f"differences, got {what} in {adapter.directory}: "
                f"{some(adapter.biases or adapter.saved)} (merge that adapter into its model)"
            )


def _sums(stored: Sequence[StoredAdapter], weights: Sequence[float]) -> dict[str, list[list[Part]]]:
    """What sums up to each layer, or to each expert of a parameter."""
    sums: dict[str, list[list[Part]]] = {}
    fused = {name for adapter in stored for name in adapter.experts}
    for weight, adapter in zip(weights, stored, strict=True):
        if clash := fused & adapter.layers.keys():
            raise ValueError(
                f"{WHO}: the adapters must be of one base model, got {some(sorted(clash))} as a "
                "layer and as fused experts"
            )
        for name, layers in layers_of(adapter).items():
            each = sums.setdefault(name, [[] for _ in layers])
            if len(each) != len(layers):
                raise ValueError(
                    f"{WHO}: the adapters must be of one base model, got {name} of {len(each)} and "
                    f"{len(layers)} experts"
                )
            for part, layer in zip(each, layers, strict=True):
                part.append((weight, layer))
    for name, part in _alike(sums).items():
        shapes = [(layer.out_features, layer.in_features) for _, layer in part]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{WHO}: the adapters must be of one base model, got {name} of shapes "
                f"{', '.join(by(*shape) for shape in shapes)}"
            )
    return sums


def _alike(sums: Mapping[str, Sequence[list[Part]]]) -> dict[str, list[Part]]:
    """A sum for each name: those of all experts of a parameter have the same shapes and specs."""
    return {name: each[0] for name, each in sums.items()}


def _concatenation(
    sums: Mapping[str, Sequence[list[Part]]], *, for_peft: bool
) -> Callable[..., StoredLayer]:
    """What puts ranks side by side, such that PEFT can load the result where it can be helped."""
    parts = _alike(sums)
    ranks = {name: sum(layer.spec.r for _, layer in part) for name, part in parts.items()}
    grids = {(layer.spec.k_out, layer.spec.k_in) for part in parts.values() for _, layer in part}
    if for_peft and len(grids) == 1 and all(k_out == k_in for k_out, k_in in grids):
        ranks = dict.fromkeys(ranks, max(ranks.values()))
    hybrid_r = max(sum(layer.spec.hybrid_r for _, layer in part) for part in parts.values())
    scales = {layer.spec.scaling for part in parts.values() for _, layer in part}
    # One scale for all layers, so that PEFT can load them; the one they had, if they had one.
    scaling = (scales.pop() if len(scales) == 1 else 1.0) or 1.0

    def make(name: str, part: Sequence[Part], **settings: Any) -> StoredLayer:
        return concatenate(
            name, part, r=ranks[name], scaling=scaling, hybrid_r=hybrid_r, **settings
        )

    return make


def _base(stored: Sequence[StoredAdapter]) -> str | None:
    names = dict.fromkeys(adapter.config.base_model_name_or_path for adapter in stored)
    names.pop(None, None)
    if len(names) > 1:
        warnings.warn(
            f"{WHO}: the adapters name different base models: {some(map(str, names))}; the result "
            "names the first",
            stacklevel=3,
        )
    return next(iter(names), None)


def _agreed(values: Sequence[T], otherwise: T) -> T:
    return values[0] if len(set(values)) == 1 else otherwise
