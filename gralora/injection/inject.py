"""inject(): attaches a new adapter to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection import checkpointing, fused, shared_inputs
from gralora.injection.experts import weights_of, wrap_owners
from gralora.injection.plan import Plan, make_plan, warn
from gralora.injection.record import attach_state, injection_state
from gralora.injection.saved_module import SavedModule, copy_modules
from gralora.injection.switching import drop_adapter, enable_adapters, set_adapter
from gralora.nn import GraLoRAExperts, MergeableLayer
from gralora.nn.choice import adapted_layer
from gralora.nn.starts import is_pissa

Fill = Callable[[Mapping[str, nn.Module]], None]


def inject(
    model: nn.Module,
    config: GraLoRAConfig,
    adapter_name: str = "default",
    *,
    adapter_dtype: torch.dtype | None = None,
    share_inputs: bool = True,
) -> nn.Module:
    """Attach a new adapter to a model, in place, and let it alone train.

    A selected ``nn.Linear`` becomes a :class:`gralora.nn.GraLoRALinear`, and a ``Conv1D`` of
    transformers a :class:`gralora.nn.GraLoRAConv1D`, which keep its name and its very weight, so
    that checkpoints of the base model still load. Quantised layers, and others that have
    ``in_features``, ``out_features`` and a forward, are put into a
    :class:`gralora.nn.GraLoRAWrapper` as its ``base_layer``; modules whose fused experts
    ``target_parameters`` selects, into a :class:`gralora.nn.GraLoRAExperts`. The rest is frozen,
    but for the
    biases and saved modules that `config` asks for. A fresh adapter changes no output. Earlier
    adapters stay attached and become inactive. Wrap and compile the model afterwards.

    With ``init_weights="pissa"`` the weights of the targets are written to: they lose what the
    adapter starts with, and outputs change by rounding. The model remains the base model plus its
    adapters: without the adapter, or with another one, the part acts that the weights lack.

    Where the model has input embeddings, their output requires gradients while its gradient
    checkpointing is on, as the reentrant kind needs; it may be switched on later.

    Args:
        model: changed in place.
        config: what to adapt and how.
        adapter_name: a plain identifier that is not in use.
        adapter_dtype: of the factors; None means the weight's dtype, float32 where that is
            bfloat16, float16 or quantised.
        share_inputs: compute projections that read the same input together, such as q, k and v,
            as :func:`gralora.share_inputs` says; False lets each compute by itself.

    Returns:
        `model`.

    Raises:
        TypeError: an argument of the wrong kind, or a target that cannot be adapted.
        ValueError: no layer is selected, settings that do not fit a layer, a name in use, or a
            model that is wrapped already.
        RuntimeError: an adapter is merged, or a weight cannot give up the part that a PiSSA adapter
            starts with, since it is shared or has no values.

    In each case nothing has changed.

    Warns:
        UserWarning: entries of `config` that matched nothing.

    """
    plan = make_plan(model, config, adapter_name, adapter_dtype=adapter_dtype)
    # First: where warnings are errors, nothing has changed.
    warn(plan)
    apply_plan(model, plan, share_inputs=share_inputs)
    return model


def apply_plan(
    model: nn.Module, plan: Plan, fill: Fill | None = None, *, share_inputs: bool = True
) -> None:
    """Carry out a plan made for this very model.

    Args:
        model: bare, or with other adapters.
        plan: what to do.
        fill: gives the new adapter its values before the model gets it, from the adapted layers and
            the wrappers of saved modules by their names. Where it fails, or memory runs out before,
            nothing has changed.
        share_inputs: as in :func:`inject`.

    """
    checkpointing.remove(model)
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        owners = wrap_owners(model, plan.record.parameters)
        layers = _build_layers(model, plan, owners, fresh=fill is None)
        wrappers = _build_saved_modules(model, plan)
        # Owners first: adapters of parameters are in the model once their owner's wrapper is.
        built = {**owners, **layers, **wrappers}
        if fill is not None:
            names = (*plan.record.targets, *plan.record.saved_modules)
            fill({name: built.get(name) or model.get_submodule(name) for name in names})
        # Last: it writes to the weights, and can be undone up to rounding alone.
        _take_out([layers[name] for name in plan.record.targets], plan.adapter_name)
    except BaseException:
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)
        drop_adapter(model, plan.adapter_name)
        checkpointing.install(model)
        raise
    for name, module in built.items():
        if model.get_submodule(name) is not module:
            _replace(model, plan.places[name], module)
    fused.disable(model)
    shared_inputs.share_inputs(model, groups=None if share_inputs else ())
    model.requires_grad_(False)
    state = injection_state(model)
    state.records[plan.adapter_name] = plan.record
    attach_state(model, state)
    enable_adapters(model, True)
    set_adapter(model, plan.adapter_name)
    checkpointing.install(model)


def _build_layers(
    model: nn.Module, plan: Plan, owners: Mapping[str, GraLoRAExperts], *, fresh: bool
) -> dict[str, MergeableLayer]:
    """The layers of the targets with the new adapter, of which the model has some already."""
    layers: dict[str, MergeableLayer] = {}
    for name, spec in plan.record.targets.items():
        if name in plan.record.parameters:
            module: nn.Module = weights_of(model, owners, name)
        else:
            module = model.get_submodule(name)
        layer = module if isinstance(module, MergeableLayer) else adapted_layer(module)
        # Finding what a PiSSA adapter starts with can take long.
        needs_start = fresh or not is_pissa(spec.init_weights)
        layer.prepare_adapter(plan.adapter_name, spec, plan.adapter_dtype, fresh=needs_start)
        layers[name] = layer
    return layers


def _take_out(layers: Sequence[MergeableLayer], adapter_name: str) -> None:
    """Let the weights lack what a new adapter starts with, all of them or none."""
    done: list[MergeableLayer] = []
    try:
        for layer in layers:
            layer.take_out(adapter_name)
            done.append(layer)
    except BaseException:
        for layer in done:
            layer.delete_adapter(adapter_name)
        raise


def _build_saved_modules(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    names = plan.record.saved_modules
    modules = [model.get_submodule(name) for name in names]
    originals = [
        module.original_module if isinstance(module, SavedModule) else module for module in modules
    ]
    copies = copy_modules(originals)
    wrappers: dict[str, nn.Module] = {}
    for name, module, copied in zip(names, modules, copies, strict=True):
        if not isinstance(module, SavedModule):
            module = wrappers[name] = SavedModule(module)
        module.add_copy(plan.adapter_name, copied)
    return wrappers


def _replace(model: nn.Module, places: tuple[str, ...], module: nn.Module) -> None:
    for place in places:
        parent, _, attribute = place.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)
