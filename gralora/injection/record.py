"""What an injected model carries: one record for each of its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gralora.config import GraLoRAConfig
from gralora.nn.spec import AdapterSpec

_ATTRIBUTE = "_gralora_injection"


@dataclass(frozen=True)
class AdapterRecord:
    """What one adapter of a model consists of; every name is one of the unwrapped model.

    Attributes:
        config: as it was given.
        targets: what each adapted layer got, by the layer's full name. A layer that is reachable
            under several names is listed under the first. Adapted parameters are listed too.
        saved_modules: modules that the adapter has copies of, those tied to them included.
        biases: parameters of the model itself that train with the adapter.
        parameters: those of `targets` that are fused experts, in the order of their owners.

    """

    config: GraLoRAConfig
    targets: Mapping[str, AdapterSpec]
    saved_modules: tuple[str, ...]
    biases: tuple[str, ...]
    parameters: tuple[str, ...] = ()


@dataclass
class InjectionState:
    """All adapters of one model, and which of them act.

    Attributes:
        records: by adapter name, in the order of injection.
        active: names of the active adapters.
        enabled: whether adapters act at all.

    """

    records: dict[str, AdapterRecord] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    enabled: bool = True


def unwrap(model: nn.Module) -> nn.Module:
    """Model inside the wrappers of data parallelism, FSDP 1 and torch.compile; else itself.

    Raises:
        TypeError: `model` is no module.

    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"gralora: model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        inner = model._modules.get("_orig_mod") or model._modules.get("_fsdp_wrapped_module")
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def injection_state(model: nn.Module) -> InjectionState:
    """State of a model, wrapped or not; a new one that is not attached where there is none."""
    # Not getattr: a module may pass on the attributes of one that it holds.
    state = unwrap(model).__dict__.get(_ATTRIBUTE)
    return state if isinstance(state, InjectionState) else InjectionState()


def attach_state(model: nn.Module, state: InjectionState) -> None:
    """Let an unwrapped model carry `state`; deepcopy and pickle take it along."""
    model.__dict__[_ATTRIBUTE] = state


def detach_state(model: nn.Module) -> None:
    """Let a module carry nothing any more."""
    model.__dict__.pop(_ATTRIBUTE, None)


def adapter_records(model: nn.Module) -> dict[str, AdapterRecord]:
    """Record of each adapter by name; empty for a model that was never injected.

    Args:
        model: bare, data-parallel or compiled.

    """
    return dict(injection_state(model).records)
