"""share_inputs(): which projections of a model are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from gralora.injection.record import unwrap
from gralora.nn.linear import GraLoRALinear
from gralora.nn.shared_input import leave, share

# As the models of transformers and diffusers, and those that their authors publish, name siblings
# that mostly read one input; the first that fit are taken.
SIBLINGS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("to_q", "to_k", "to_v"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("linear_q", "linear_k", "linear_v"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("q_proj", "kv_a_proj_with_mqa"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)

# How a cross attention is called, where no part of its name is "cross".
_CROSS_ATTENTIONS = ("encoder_attn", "encdecattention")

_WHO = "share_inputs"
# As many as the operator takes.
_MOST = 3


def share_inputs(model: nn.Module, *, groups: Sequence[Sequence[str]] | None = None) -> int:
    """Let adapted projections that read the same input be computed together, such as q, k and v.

    Their input is then read once for all latents, and once for all gradients of A, and its own
    gradient is one sum. Outputs and gradients are the same up to rounding. Siblings are layers of
    one module, each a :class:`gralora.nn.GraLoRALinear`; of a cross attention, keys and values
    alone. Which of them read one tensor is seen while the model runs; those that do not are
    computed each by itself, and so is a group of which a layer has no active adapter or several,
    one with dropout that acts, with a hybrid part or of another rank, grid, scale or dtype, or a
    hook that comes before its forward. Under ``torch.compile``, and with tensors of
    ``torch.inference_mode``, all are. Names, state dicts and files stay as they are.
    :func:`gralora.inject` and :func:`gralora.load_adapter` call this.

    The outputs have one node in the graph: a backward pass from each of them in turn needs
    ``retain_graph=True``.

    Args:
        model: changed in place; data-parallel or compiled wrappers are looked through.
        groups: names of siblings, two or three in each group, in the order in which they are
            called; None means those that are known of models of transformers and diffusers. All
            earlier groups of the model end, so that ``()`` switches this off.

    Returns:
        How many groups there are now.

    Raises:
        TypeError: `model` is no module, or `groups` are no sequences of names.
        ValueError: a group of fewer than two or more than three names, or with one twice.

    """
    groups = SIBLINGS if groups is None else groups
    _check_groups(groups)
    model = unwrap(model)
    for module in model.modules():
        if isinstance(module, GraLoRALinear):
            leave(module)
    count = 0
    for siblings in _siblings(model, groups):
        share(siblings)
        count += 1
    return count


def _siblings(model: nn.Module, groups: Sequence[Sequence[str]]) -> Iterator[list[GraLoRALinear]]:
    """Each set of two or three layers that are to be observed; none is in two."""
    taken: set[int] = set()
    for path, parent in model.named_modules():
        crosses = _is_cross_attention(path, parent)
        for group in groups:
            # There keys and values read one tensor, and queries another.
            names = group[1:] if crosses and len(group) == _MOST else group
            children = [parent._modules.get(name) for name in names]
            free = [
                child
                for child in children
                if isinstance(child, GraLoRALinear) and id(child) not in taken
            ]
            # One layer may be there under several names.
            unique = {id(layer): layer for layer in free}.values()
            for width in {layer.in_features for layer in unique}:
                layers = [layer for layer in unique if layer.in_features == width]
                # At most one width has two of three.
                if len(layers) > 1:
                    taken.update(map(id, layers))
                    yield layers


def _is_cross_attention(path: str, module: nn.Module) -> bool:
    """Whether a module says so, or is named so; BERT's holds its projections in a ``self``."""
    if getattr(module, "is_cross_attention", False) is True:
        return True
    parts = path.lower().split(".")[-2:]
    return any("cross" in part or part in _CROSS_ATTENTIONS for part in parts)


def _check_groups(groups: Any) -> None:
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise TypeError(f"{_WHO}: groups must be a sequence of groups of names, got {groups!r}")
    for group in groups:
        if (
            isinstance(group, str)
            or not isinstance(group, Sequence)
            or not all(isinstance(name, str) for name in group)
        ):
            raise TypeError(f"{_WHO}: each group must be a sequence of names, got {group!r}")
        if not 2 <= len(group) <= _MOST or len(set(group)) != len(group):
            raise ValueError(
                f"{_WHO}: each group must have 2 to {_MOST} different names, got {list(group)}"
            )
