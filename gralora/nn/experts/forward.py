"""The forward of transformers' experts modules with adapters, grouped over all experts.

Router, gate and activation are the model's own: the router has decided before, the others are
called as transformers' grouped implementation calls them. Like that one it multiplies in the dtype
of the experts, also under autocast: all of them, cast in each call and kept for the backward, would
take the memory of another model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gralora.nn.experts.layout import is_transposed
from gralora.nn.experts.products import grouped_product
from gralora.nn.experts.routing import Routing

# (name of the parameter, output rows, input rows, ends of the experts' rows) -> output rows.
Add = Callable[[str, Tensor, Tensor, Tensor], Tensor]


def grouped_forward(
    module: nn.Module,
    names: tuple[str, str],
    add: Add,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """What the experts module computes, with something added to each of its two products.

    Args:
        module: the frozen experts.
        names: as :func:`gralora.nn.experts.layout.projections` gives them.
        add: gives a product with what the adapters add.
        hidden_states: ``[T, hidden]``.
        top_k_index: ``[T, top_k]``, the experts that the router chose. A number that no expert has,
            as those beyond the last, adds nothing and gets gradients of zero.
        top_k_weights: ``[T, top_k]``, what their outputs are multiplied by.

    Returns:
        ``[T, hidden]`` in the dtype of `hidden_states`.

    """
    experts: Any = module
    up, down = names
    routing = Routing.of(top_k_index, experts.get_parameter(up).shape[0])
    rows = routing.rows(hidden_states)
    inner = _project(module, up, rows, routing, add)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _project(module, down, inner, routing, add)
    if getattr(experts, "has_post_expert_norm", False):  # newer than transformers 5.17
        outer = experts.post_expert_norm(outer)
    weighted = outer * routing.sorted(top_k_weights.reshape(-1)).unsqueeze(1)
    return routing.sums(weighted).to(hidden_states.dtype)


def _project(module: nn.Module, name: str, x: Tensor, routing: Routing, add: Add) -> Tensor:
    weight = module.get_parameter(name)
    x = x.to(weight.dtype)
    matrices = weight if is_transposed(module) else weight.transpose(1, 2)
    y = grouped_product(x, matrices, routing.ends)
    if getattr(module, "has_bias", False):
        y = y + module.get_parameter(f"{name}_bias").to(x.dtype)[routing.experts]
    return add(name, y, x, routing.ends)
