"""save_adapter and load_adapter: adapters in folders, as PEFT keeps them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from gralora.injection.inject import apply_plan
from gralora.injection.plan import Plan, make_plan
from gralora.injection.record import AdapterRecord, adapter_records, unwrap
from gralora.injection.starts import check_starts
from gralora.injection.survey import survey
from gralora.nn.spec import AdapterSpec, check_adapter_name
from gralora.storage.agreement import check_agreement
from gralora.storage.config_values import WHO
from gralora.storage.extras import check_copies, split_extras
from gralora.storage.pair import in_folder, open_pair, write_pair
from gralora.storage.peft_config import describe
from gralora.storage.pissa import as_difference, halved, join, remember_start, restore_start, split
from gralora.storage.resolution import check_keys, resolve
from gralora.storage.rslora import remember_alpha, restore_alpha
from gralora.storage.state_dict import checked_tensors, copy_into, gather, known_record
from gralora.storage.stored_config import StoredConfig, parse_config
from gralora.storage.tensor_file import read_tensors
from gralora.storage.tensor_names import bias_keys, live_tensors, wanted_tensors
from gralora.storage.tying import drop_partners, separate

Directory = str | os.PathLike[str]


def save_adapter(model: nn.Module, directory: Directory, adapter_name: str = "default") -> None:
    """Save one adapter as ``adapter_config.json`` and ``adapter_model.safetensors``.

    PEFT loads the result with ``PeftModel.from_pretrained``. Tensors keep their dtype; equal
    adapters give equal files. Merged and inactive adapters are saved like others. A process that is
    killed meanwhile leaves the earlier adapter of that folder or the new one.

    A PiSSA adapter is saved as its difference to the unmodified base, of twice the rank, with a
    note from which :func:`load_adapter` makes the adapter of rank r again.

    Under FSDP2 every rank has to call this, and rank 0 writes. Under DistributedDataParallel one
    rank is enough.

    Args:
        model: injected; data-parallel or compiled wrappers are looked through.
        directory: created where it is missing.
        adapter_name: which adapter.

    Raises:
        ValueError: an unknown name, tensors that are not whole, or a module whose name cannot be
            stored.
        RuntimeError: tensors on the meta device, or rank 0 could not write.
        OSError: the files cannot be written; an earlier adapter of that folder is still there.

    Warns:
        UserWarning: PEFT could not build the same adapter, so the files are marked as not its.

    """
    who = "save_adapter"
    folder = _as_path(directory, who)
    record = known_record(model, adapter_name, who)
    live = checked_tensors(model, adapter_name, who)
    sharded = any(isinstance(tensor, DTensor) for tensor in live.values())
    writes = not sharded or distributed.get_rank() == 0
    tensors: dict[str, Tensor] = {}
    for key, tensor in live.items():
        whole = gather(tensor.detach())
        if writes:
            tensors[key] = whole.cpu().contiguous()
    if not sharded:
        _write(unwrap(model), record, folder, tensors)
        return
    failure: list[str | None] = [None]
    try:
        if writes:
            _write(unwrap(model), record, folder, tensors)
    except Exception as error:
        failure = [str(error)]
        raise
    finally:
        # The other ranks must neither wait for ever nor go on as if the files were there.
        distributed.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise RuntimeError(f"{who}: rank 0 could not save: {failure[0]}")


def load_adapter(
    model: nn.Module,
    directory: Directory,
    adapter_name: str = "default",
    *,
    adapter_dtype: torch.dtype | None = None,
    share_inputs: bool = True,
) -> nn.Module:
    """Attach a saved adapter to a model, in place, and make it the active one.

    Reads what :func:`save_adapter`, PEFT's GraLoRA and the fork of the method's authors write. The
    files need not be trusted: everything is checked before the model changes.

    A PiSSA adapter that was saved here takes the part it started with out of the weights again, so
    that training goes on as if it had not stopped. Where they cannot give it, as quantised or
    shared ones, it is attached as its difference to the base, of rank 2r.

    Args:
        model: bare, or with other adapters, which become inactive; not wrapped yet.
        directory: holds the two files.
        adapter_name: a new name; the file knows none.
        adapter_dtype: of the factors; None means the weight's dtype, float32 where that is
            bfloat16, float16 or quantised, as in PEFT. The files' dtype does not matter.
        share_inputs: as in :func:`gralora.inject`.

    Returns:
        `model`.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a damaged or hostile file, a config of another method, files that do not belong
            together or to this model, or a name in use.
        TypeError: tensors of integers, a target that cannot be adapted.
        RuntimeError: an adapter is merged, or the model is on the meta device.

    In each case, and where memory runs out, nothing has changed.

    Warns:
        UserWarning: unknown fields in the config, values that untie tied modules, or a PiSSA
            adapter that is attached as its difference.

    """
    _check_model(model, adapter_name)
    folder = _as_path(directory, WHO)
    try:
        plan, values = _read(model, folder, adapter_name, adapter_dtype)
    except (OSError, ValueError, TypeError) as error:
        raise in_folder(error, folder, who=WHO) from None
    apply_plan(
        model,
        plan,
        lambda modules: _fill(model, plan, modules, values),
        share_inputs=share_inputs,
    )
    return model


def _read(
    model: nn.Module, folder: Path, adapter_name: str, adapter_dtype: torch.dtype | None
) -> tuple[Plan, dict[str, Tensor]]:
    """What an adapter on disk makes of a model, and its numbers by key, all of it checked."""
    with open_pair(folder) as pair:
        stored = restore_alpha(parse_config(pair.content), pair.header.metadata)
        keys = pair.header.tensors.keys()

        def planned(config: StoredConfig) -> Plan:
            resolved = resolve(model, config, keys)
            return make_plan(model, resolved, adapter_name, adapter_dtype=adapter_dtype, who=WHO)

        plan = planned(stored)
        own = restore_start(stored, pair.header.metadata)
        if own is not None and _can_start(model, halved(plan.record.targets, own)):
            plan = planned(own)
        wanted = drop_partners(wanted_tensors(model, as_difference(plan.record)), plan.record, keys)
        received, copies = split_extras(model, plan.record, wanted, pair.header.tensors)
        check_agreement(wanted, received, who=WHO)
        tensors = read_tensors(pair.file, pair.header)
    check_copies(copies, tensors)
    return plan, split({key: tensors[key] for key in received}, plan.record)


def _can_start(model: nn.Module, specs: Mapping[str, AdapterSpec]) -> bool:
    """Whether a model's weights can give a PiSSA adapter what it started with; else warn."""
    try:
        check_starts(model, specs, WHO)
    except (TypeError, ValueError, RuntimeError) as error:
        warnings.warn(
            f"{WHO}: the PiSSA adapter is attached as its difference to the base, of twice its "
            f"rank ({str(error).removeprefix(f'{WHO}: ')})",
            stacklevel=4,
        )
        return False
    return True


def _write(
    model: nn.Module, record: AdapterRecord, directory: Path, tensors: dict[str, Tensor]
) -> None:
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"save_adapter: directory must be a folder, got {directory}")
    stored = as_difference(record)
    content = describe(model, stored, survey(model).modules)
    tensors = join(tensors, record)
    try:
        parse_config(content)
        check_keys(tensors)
    except ValueError as error:
        raise ValueError(
            f"save_adapter: the adapter must be one that can be loaded again, got one that is "
            f"refused ({error})"
        ) from None
    directory.mkdir(parents=True, exist_ok=True)
    write_pair(directory, content, tensors, remember_alpha(stored) | remember_start(record))


def _as_path(directory: Directory, who: str) -> Path:
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(
            f"{who}: directory must be a str or os.PathLike, got a {type(directory).__name__}"
        )
    return Path(directory)


def _fill(
    model: nn.Module, plan: Plan, modules: Mapping[str, nn.Module], values: Mapping[str, Tensor]
) -> None:
    """Copy values into an adapter that `model` does not have yet, or change nothing in `model`."""
    record, name = plan.record, plan.adapter_name
    separate(live_tensors(model, record, name, modules), record, name, modules, values)
    live = live_tensors(model, record, name, modules)
    kept = {key: live[key].detach().clone() for key in bias_keys(record)}
    try:
        copy_into(live, values)
    except BaseException:
        copy_into(live, kept)
        raise


def _check_model(model: nn.Module, adapter_name: str) -> None:
    check_adapter_name(adapter_name, who=WHO)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{WHO}: model must be a torch.nn.Module, got {type(model).__name__}")
    if unwrap(model) is not model:
        raise ValueError(
            f"{WHO}: model must not be wrapped yet, got a {type(model).__name__} (load before "
            "wrapping in DistributedDataParallel, and before torch.compile)"
        )
    if adapter_name in adapter_records(model):
        present = ", ".join(map(repr, adapter_records(model)))
        raise ValueError(
            f"{WHO}: adapter_name must be new, got {adapter_name!r} (present: {present}; "
            "load_adapter_state_dict writes into one that is there)"
        )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise RuntimeError(
                f"{WHO}: model must have values, got {name} on the meta device (load the base "
                "model's weights first)"
            )
