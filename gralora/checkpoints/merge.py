"""merge_checkpoint: adapters into a base model on disk, shard by shard."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from gralora._extension import build_info
from gralora.adapters.stored import StoredAdapter, read_adapter
from gralora.checkpoints.folder import Checkpoint, open_checkpoint
from gralora.checkpoints.layout import LAYOUTS, Layout
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.plan import MergePlan, make_plan
from gralora.checkpoints.side_files import SideFiles, sort_side_files, write_side_files
from gralora.checkpoints.stream import write_shard
from gralora.checkpoints.tensor_plan import fingerprint
from gralora.checkpoints.workspace import Workspace, open_workspace
from gralora.storage.tensor_file import _bytes_of

PathLike = str | os.PathLike[str]
Adapters = PathLike | Sequence[PathLike | tuple[PathLike, float]]
# Times the largest scale that a config may have, it still is a float32.
_MAX_WEIGHT = 1e6
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Progress:
    """How far a merge is.

    Attributes:
        done: bytes of the base that were read, or found merged by an earlier run.
        total: bytes of the base.
        shard: being worked on.
        position: of that shard, from 1.
        shards: how many there are.

    """

    done: int
    total: int
    shard: str
    position: int
    shards: int


@dataclass(frozen=True)
class MergeReport:
    """What was done.

    Attributes:
        out: folder of the merged model.
        layers: weights that were merged into.
        replaced: other tensors that have an adapter's values.
        added: tensors that the base lacks.
        renamed: changes of prefixes from an adapter's names to the base's, as ``(old, new)``.
        untied: whether the head is no longer tied to the embedding.
        copied: files beside the weights that went along.
        left_out: those that did not, with the reason.
        shards: files of weights.
        resumed: how many of them an earlier run had finished.
        bytes: of the base's weights.
        seconds: of this run.

    """

    out: Path
    layers: int
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    untied: bool
    copied: tuple[str, ...]
    left_out: Mapping[str, str]
    shards: int
    resumed: int
    bytes: int
    seconds: float


def merge_checkpoint(
    base: PathLike,
    adapters: Adapters,
    out: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    layout: Layout | None = None,
    with_code: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> MergeReport:
    """Merge adapters into a folder of safetensors without holding the model in memory.

    At most one tensor of the base and one layer's factors and ΔW are in memory beside the adapters.
    Sums are taken in float32 or wider and rounded once. Neither base nor adapters need be trusted:
    everything is checked before anything is written, no pickle is read and no code is run.

    `out` appears when everything is written. Until then, finished shards lie in the hidden folder
    ``.<name of out>.merging`` beside it. Whoever is killed runs the same again: shards whose own
    and whose source's SHA-256 are still the noted ones are taken over, and the result is the same
    to the byte.

    Args:
        base: folder with ``model.safetensors``, or an index and shards.
        adapters: folder of one, or several folders, each alone or as ``(folder, weight)``. With
            several, or a weight other than 1, ΔW and the change of each trained bias or saved
            module are multiplied by the weight and added up.
        out: absent, or an empty folder; not inside `base`.
        device: where weights are merged, such as ``"cuda"``.
        dtype: of all floating tensors; None keeps each as it is.
        layout: of square weights, where config.json does not tell: ``"linear"`` for
            ``torch.nn.Linear``, ``"conv1d"`` for transformers' ``Conv1D``.
        with_code: let Python files of the base go along, which are left out otherwise.
        progress: called often.

    Raises:
        OSError: a file is missing, or cannot be read or written; `out` exists; the disk is full.
        TypeError: an argument of the wrong kind, or a quantised base.
        ValueError: a damaged or hostile file, an adapter that does not fit the base, a result with
            an Inf or NaN.
        RuntimeError: the device cannot be used or has too little memory.

    """
    started = time.monotonic()
    where, pairs = _check_arguments(device, adapters, dtype, layout)
    target = _check_target(out, base)
    checkpoint = open_checkpoint(base)
    stored = [(read_adapter(folder, safe=True), weight) for folder, weight in pairs]
    plan = make_plan(checkpoint, stored, dtype=dtype, layout=layout)
    files = sort_side_files(checkpoint, with_code=with_code)
    with open_workspace(target, _settings(where, stored), plan.shards) as work:
        try:
            resumed = _write_shards(work, checkpoint, plan, where, progress)
            write_side_files(work, checkpoint, plan, files, dtype)
            work.publish()
        except (OSError, RuntimeError) as error:
            raise _explained(error, work, len(checkpoint.shards)) from error
        except ValueError:
            # The next run would come to the same end.
            work.finished.clear()
            raise
    return _report(target, checkpoint, plan, files, resumed, time.monotonic() - started)


def _check_arguments(
    device: object, adapters: Adapters, dtype: object, layout: object
) -> tuple[torch.device, list[tuple[Path, float]]]:
    if dtype is not None and dtype not in _DTYPES:
        accepted = ", ".join(str(kind) for kind in _DTYPES)
        raise TypeError(f"{WHO}: dtype must be None or one of {accepted}, got {dtype!r}")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"{WHO}: layout must be None or one of {LAYOUTS}, got {layout!r}")
    where = torch.device(device)  # type: ignore[call-overload]
    try:
        torch.empty(0, device=where)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        raise RuntimeError(f"{WHO}: the device {where} cannot be used: {first}") from None
    entries = [adapters] if isinstance(adapters, (str, os.PathLike)) else list(adapters)
    if not entries:
        raise ValueError(f"{WHO}: adapters must hold at least one, got none")
    pairs = [entry if isinstance(entry, tuple) else (entry, 1.0) for entry in entries]
    for folder, weight in pairs:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"{WHO}: the weight of {folder} must be a number, got {weight!r}")
        if not abs(weight) <= _MAX_WEIGHT:
            raise ValueError(
                f"{WHO}: the weight of {folder} must lie within {_MAX_WEIGHT:g}, got {weight}"
            )
    return where, [(Path(folder), float(weight)) for folder, weight in pairs]


def _check_target(out: PathLike, base: PathLike) -> Path:
    target = Path(os.path.abspath(out))
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        raise FileExistsError(f"{WHO}: out must be absent or an empty folder, got {target}")
    if target.is_symlink():
        raise FileExistsError(f"{WHO}: out must be no link, got {target}")
    source = os.path.realpath(base)
    if Path(os.path.realpath(target)).is_relative_to(source):
        raise ValueError(f"{WHO}: out must lie outside the base model, got {target}")
    return target


def _settings(
    device: torch.device, adapters: Sequence[tuple[StoredAdapter, float]]
) -> dict[str, Any]:
    """What every shard depends on beside its source and its plan."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "format": 1,
        "gralora": build_info.VERSION,
        "torch": torch.__version__,
        "device": kind,
        "adapters": [
            {
                "name": adapter.directory.resolve().name,
                "weight": weight,
                "sha256": _digest(adapter),
            }
            for adapter, weight in adapters
        ],
    }


def _digest(adapter: StoredAdapter) -> str:
    """Of everything in an adapter that a merge uses."""
    total = hashlib.sha256()

    def add(name: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            total.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            total.update(_bytes_of(tensor))

    for module, layer in sorted(adapter.layers.items()):
        total.update(repr((module, astuple(layer.spec))).encode())
        for factor in layer.factors:
            add(module, factor)
    for group in (adapter.biases, adapter.saved):
        for name, tensor in sorted(group.items()):
            add(name, tensor)
    return total.hexdigest()


def _write_shards(
    work: Workspace,
    base: Checkpoint,
    plan: MergePlan,
    device: torch.device,
    progress: Callable[[Progress], None] | None,
) -> int:
    """Write every shard that is not finished yet; return how many were."""
    total, done = sum(shard.size for shard in base.shards), 0
    resumed, position, current = 0, 0, ""

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(Progress(done, total, current, position, len(base.shards)))

    _check_space(work, plan)
    for position, shard in enumerate(base.shards, 1):  # noqa: B007  (advance reads it)
        tensors = plan.shards[shard.name]
        current, before, planned = shard.name, done, fingerprint(tensors)
        advance(0)
        if work.is_finished(shard.name, planned, shard.path):
            resumed += 1
            advance(shard.size)
            continue
        work.finished.pop(shard.name, None)
        temporary = work.new_file()
        digests = write_shard(shard, tensors, temporary, device, advance)
        work.keep(temporary, shard.name, planned, digests)
        done = before + shard.size
    return resumed


def _check_space(work: Workspace, plan: MergePlan) -> None:
    """Fail early where the disk cannot hold what is still to be written."""
    needed = sum(
        tensor.size
        for name, tensors in plan.shards.items()
        if name not in work.finished
        for tensor in tensors
    )
    free = shutil.disk_usage(work.path).free
    if free < needed:
        raise OSError(
            f"{WHO}: the disk must have room for what is still to be written, got "
            f"{free / 1e9:.2f} GB free for {needed / 1e9:.2f} GB"
        )


def _explained(error: Exception, work: Workspace, shards: int) -> Exception:
    """The error with what it leaves behind."""
    reason = str(error).removeprefix(f"{WHO}: ")
    left = "nothing was written"
    if work.finished:
        left = (
            f"{len(work.finished)} of {shards} shards are kept in {work.path}: run the same again "
            "to go on, or remove that folder"
        )
    return type(error)(f"{WHO}: {reason}; {left}")


def _report(
    target: Path,
    base: Checkpoint,
    plan: MergePlan,
    files: SideFiles,
    resumed: int,
    seconds: float,
) -> MergeReport:
    renamed = {(rule.old, rule.new) for rule in plan.renamings if rule.changes}
    return MergeReport(
        out=target,
        layers=sum(bool(tensor.additions) for tensor in plan.tensors),
        replaced=tuple(t.name for t in plan.tensors if t.replacements and t.source is not None),
        added=tuple(plan.added),
        renamed=tuple(sorted(renamed)),
        untied=plan.untied,
        copied=files.copied,
        left_out=files.left_out,
        shards=len(base.shards),
        resumed=resumed,
        bytes=sum(shard.size for shard in base.shards),
        seconds=seconds,
    )
