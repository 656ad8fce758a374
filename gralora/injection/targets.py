"""Which layers an adapter is attached to, and whether that can work."""

from __future__ import annotations

from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.listing import some
from gralora.injection.paths import is_inside
from gralora.injection.saved_module import SavedModule
from gralora.injection.survey import Survey
from gralora.nn import ExpertWeights, MergeableLayer
from gralora.nn.adapters import check_dtypes
from gralora.nn.kinds import (
    has_computed_weight,
    has_forward,
    has_packed_weight,
    is_plain_conv1d,
    is_plain_linear,
    sizes,
)

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def choose_targets(
    model: nn.Module, found: Survey, config: GraLoRAConfig, saved: tuple[str, ...], who: str
) -> tuple[str, ...]:
    """First names of the layers to adapt, in the model's order.

    A layer with several names is chosen when one of them is selected and none is excluded.

    Raises:
        ValueError: no layer is selected, although `target_modules` asks for some.

    """
    candidates = _linear_names(model, found) if names.is_all_linear(config) else None
    targeted = names.NameMatcher(config.target_modules)
    excluding = names.NameMatcher(config.exclude_modules)
    copied = frozenset(saved)
    chosen: set[str] = set()
    excluded: set[str] = set()
    for name, module in found.modules.items():
        # Those are what target_parameters selects, in a model that has none yet too.
        if isinstance(module, ExpertWeights):
            continue
        first = found.first_name(name)
        if excluding.matching(name) or is_inside(name, copied):
            excluded.add(first)
        elif names.is_in_wanted_layers(config, name):
            wanted = targeted.matching(name) if candidates is None else name in candidates
            if wanted:
                chosen.add(first)
    targets = tuple(name for name in found.modules if name in chosen - excluded)
    if not targets and not _may_be_none(config):
        raise ValueError(_describe_no_target(found, config, who))
    return targets


def _may_be_none(config: GraLoRAConfig) -> bool:
    """Whether a model without a layer to adapt is as its user expects."""
    # "all-linear" is the default, and some modules have experts and a router alone.
    unasked = not config.target_modules or names.is_all_linear(config)
    return unasked and bool(config.target_parameters)


def reads_weights_itself(found: Survey, name: str) -> bool:
    """Whether the owner of the layer called `name` never calls it."""
    return any(
        isinstance(found.modules.get(alias.rpartition(".")[0]), nn.MultiheadAttention)
        for alias in found.names[id(found.modules[name])]
    )


def check_target(found: Survey, name: str, who: str) -> None:
    """Raise unless the layer called `name` can be adapted without losing anything.

    Raises:
        TypeError: neither an adapted layer nor one that can be.
        ValueError: what the layer has or is part of would be lost, or ignore the adapter.

    """
    module = found.modules[name]
    if reads_weights_itself(found, name):
        raise ValueError(
            f"{who}: a target must be called by its owner, got {name}, whose weight "
            "torch.nn.MultiheadAttention reads itself, so that an adapter would be ignored (leave "
            "it out with exclude_modules)"
        )
    # Not isinstance: a torch without distributed has no DTensor.
    if hasattr(getattr(module, "weight", None), "placements"):
        raise ValueError(
            f"{who}: a target must not be sharded yet, got {name} with a DTensor (inject before "
            "fully_shard)"
        )
    if isinstance(module, MergeableLayer):
        return
    if (is_plain_linear(module) or is_plain_conv1d(module)) and not has_packed_weight(module):
        _check_weighted(module, name, who)
    else:
        _check_wrappable(module, name, who)


def _check_weighted(module: nn.Module, name: str, who: str) -> None:
    """Check a layer whose weight the adapted layer takes over."""
    if has_computed_weight(module):
        raise TypeError(
            f"{who}: the weight of a target must be a parameter, got {name} with one that is "
            "computed (parametrised, pruned or weight-normed; make the computation permanent first)"
        )
    weight = module._parameters["weight"]
    assert weight is not None
    shape = sizes(module) if is_plain_conv1d(module) else sizes(module)[::-1]
    if tuple(weight.shape) != shape:
        raise ValueError(
            f"{who}: the weight of a target must be {list(shape)}, got {name} with "
            f"{list(weight.shape)} (inject before weights are partitioned or packed)"
        )
    check_dtypes(weight.dtype, None, who=f"{who}: {name}")
    hooks = [attribute.strip("_") for attribute in _HOOKS if getattr(module, attribute)]
    if hooks or "forward" in module.__dict__:
        raise ValueError(
            f"{who}: a target must have no hooks and no replaced forward, which would be lost, got "
            f"{name} with {', '.join(hooks) or 'a forward of its own'} (load the model without "
            "device_map, and inject before hooks are registered)"
        )


def _check_wrappable(module: nn.Module, name: str, who: str) -> None:
    """Check a layer that will run itself."""
    widths = sizes(module)
    stated = all(isinstance(width, int) and not isinstance(width, bool) for width in widths)
    if not stated or not has_forward(module) or isinstance(module, SavedModule):
        raise TypeError(
            f"{who}: a target must be a torch.nn.Linear, a Conv1D of transformers, or another "
            f"module with in_features, out_features and a forward, got {name}, a "
            f"{type(module).__module__}.{type(module).__qualname__} (narrow target_modules, or "
            "leave it out with exclude_modules)"
        )
    if next((p for p in module.parameters() if p.numel() == 0), None) is not None:
        raise ValueError(
            f"{who}: the parameters of a target must be whole, got {name} with an empty one "
            "(inject before weights are partitioned)"
        )


def _linear_names(model: nn.Module, found: Survey) -> set[str]:
    """Every name of a linear layer but those of the output head."""
    heads: set[int] = set()
    get_head = getattr(model, "get_output_embeddings", None)
    if callable(get_head):
        heads.add(id(get_head()))
    return {
        name
        for name in found.linear_names()
        if id(found.modules[name]) not in heads and not reads_weights_itself(found, name)
    }


def _describe_no_target(found: Survey, config: GraLoRAConfig, who: str) -> str:
    settings = [f"target_modules={config.target_modules!r}"]
    for setting in ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"):
        value = getattr(config, setting)
        if value is not None:
            settings.append(f"{setting}={value!r}")
    return (
        f"{who}: target_modules must select a layer of the model, got {', '.join(settings)} "
        f"(linear layers of the model: {some(found.linear_names())})"
    )
