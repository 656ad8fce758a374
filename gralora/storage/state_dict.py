"""An adapter of a model as a state dict with the keys of PEFT's file, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gralora.injection.record import AdapterRecord, adapter_records, unwrap
from gralora.nn import MergeableLayer
from gralora.storage.agreement import check_agreement
from gralora.storage.pissa import as_difference, is_start, join, split
from gralora.storage.tensor_names import live_tensors, wanted_tensors


def adapter_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The tensors of one adapter, by the keys of PEFT's file.

    Adapters that are merged or inactive are given like others. Under FSDP2 every rank has to call
    this: sharded tensors are gathered.

    Args:
        model: injected; data-parallel or compiled wrappers are looked through.
        adapter_name: which adapter.

    Returns:
        Detached tensors, in their own dtype and on their own device. Those that are not sharded
        share memory with the model; saved modules that are tied share it among themselves. Those of
        a PiSSA adapter are new: its difference to the unmodified base, of twice the rank.

    Raises:
        ValueError: an unknown name, or a tensor that is not whole, as DeepSpeed's partitions are.
        RuntimeError: a tensor on the meta device.

    """
    live = checked_tensors(model, adapter_name, "adapter_state_dict")
    whole = {key: gather(tensor.detach()) for key, tensor in live.items()}
    return join(whole, adapter_records(model)[adapter_name])


@torch.no_grad()
def load_adapter_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], adapter_name: str = "default"
) -> None:
    """Copy tensors into an adapter in place: its parameters stay the same objects.

    So optimizers keep their state and compiled models their code. Under FSDP2 every rank has to
    call this, with whole tensors.

    Args:
        model: injected; data-parallel or compiled wrappers are looked through.
        state_dict: exactly the keys that :func:`adapter_state_dict` gives; any floating dtype.
        adapter_name: which adapter.

    Raises:
        ValueError: an unknown name, missing or unexpected keys, another shape, two values for
            tensors that are tied, or a PiSSA adapter that started with other factors than the
            model's. The model is unchanged then, as with the other errors.
        TypeError: no mapping, a value that is no tensor, or not of floating dtype where it must be.
        RuntimeError: the adapter is merged into a weight.

    """
    who = "load_adapter_state_dict"
    record = known_record(model, adapter_name, who)
    bare = unwrap(model)
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{who}: state_dict must be a mapping of tensors, got a {type(state_dict).__name__}"
        )
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{who}: {key} must be a tensor, got a {type(value).__name__}")
    check_agreement(wanted_tensors(bare, as_difference(record)), state_dict, who=who)
    _check_unmerged(bare, record, adapter_name, who)
    live = live_tensors(bare, record, adapter_name)
    values = split(state_dict, record)
    _check_starts(live, values, who)
    conflict = tied_conflict(live, values)
    if conflict is not None:
        raise ValueError(
            f"{who}: {conflict[0]} and {conflict[1]} are one tensor of the model and must have "
            "the same values, got two"
        )
    copy_into(live, values)


def checked_tensors(model: nn.Module, adapter_name: str, who: str) -> dict[str, Tensor]:
    """The model's tensors of an adapter by key, once they are known to have values.

    Raises:
        ValueError: an unknown name, or a tensor that is not whole.
        RuntimeError: a tensor on the meta device.

    """
    record = known_record(model, adapter_name, who)
    bare = unwrap(model)
    wanted, live = wanted_tensors(bare, record), live_tensors(bare, record, adapter_name)
    for key, tensor in live.items():
        if tensor.is_meta:
            raise RuntimeError(f"{who}: {key} must have values, got a tensor on the meta device")
        if tuple(tensor.shape) != wanted[key].shape:
            raise ValueError(
                f"{who}: {key} must be whole, with shape {wanted[key].shape}, got "
                f"{tuple(tensor.shape)} (gather partitioned parameters first)"
            )
    return live


def known_record(model: nn.Module, adapter_name: str, who: str) -> AdapterRecord:
    """Record of an adapter.

    Raises:
        ValueError: the model has no adapter of that name.

    """
    records = adapter_records(model)
    if adapter_name not in records:
        present = ", ".join(map(repr, records)) or "none"
        raise ValueError(f"{who}: no adapter is named {adapter_name!r} (present: {present})")
    return records[adapter_name]


def gather(tensor: Tensor) -> Tensor:
    """The whole tensor, from the shards of all ranks where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def tied_conflict(
    live: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> tuple[str, str] | None:
    """Two keys of one tensor of the model that have different values, if there are any."""
    first: dict[int, str] = {}
    for key, tensor in live.items():
        other = first.setdefault(id(tensor), key)
        if other != key and key in values and not torch.equal(values[other], values[key]):
            return other, key
    return None


@torch.no_grad()
def copy_into(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy each value into the model's tensor of that key, sharded as that one is."""
    for key, value in values.items():
        target = live[key]
        if isinstance(target, DTensor):
            whole = gather(value).to(device=target.device, dtype=target.dtype)
            target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))
        else:
            target.copy_(gather(value))


def _check_starts(live: Mapping[str, Tensor], values: Mapping[str, Tensor], who: str) -> None:
    """Refuse a PiSSA adapter that belongs to another residual of the base."""
    for key, value in values.items():
        if is_start(key):
            own = gather(live[key].detach())
            if not torch.equal(own, gather(value).to(device=own.device, dtype=own.dtype)):
                raise ValueError(
                    f"{who}: a PiSSA adapter must have started with the factors of the model's, "
                    f"which its weights lack, got others in {key.rpartition('.')[0]} (load_adapter "
                    "attaches it to an unmodified model)"
                )


def _check_unmerged(model: nn.Module, record: AdapterRecord, adapter_name: str, who: str) -> None:
    for name in record.targets:
        layer = model.get_submodule(name)
        if isinstance(layer, MergeableLayer) and adapter_name in layer.merged_adapters:
            raise RuntimeError(
                f"{who}: {adapter_name!r} is merged into the weight of {name}, which would keep "
                "the old values; unmerge it first"
            )
