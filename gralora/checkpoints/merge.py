"""merge_checkpoint: adapters into a base model on disk, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gralora.adapters.stored import read_with_experts
from gralora.checkpoints.arguments import (
    Adapters,
    PathLike,
    check_arguments,
    check_target,
    hint_at_swap,
)
from gralora.checkpoints.folder import Checkpoint, open_checkpoint
from gralora.checkpoints.layout import Layout
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.plan import MergePlan, make_plan
from gralora.checkpoints.provenance import settings_of
from gralora.checkpoints.side_files import SideFiles, sort_side_files, write_side_files
from gralora.checkpoints.space import check_space
from gralora.checkpoints.stream import write_shard
from gralora.checkpoints.tensor_plan import fingerprint
from gralora.checkpoints.workspace import Workspace, open_workspace


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
        out: absent, or an empty folder; not inside `base` or one of `adapters`.
        device: where weights are merged, such as ``"cuda"``.
        dtype: of all floating tensors; None keeps each as it is.
        layout: of square weights, where config.json does not tell: ``"linear"`` for
            ``torch.nn.Linear``, ``"conv1d"`` for transformers' ``Conv1D``; of square fused experts
            ``[E, M, N]`` and ``[E, N, M]``.
        with_code: let Python files of the base go along, which are left out otherwise.
        progress: called often.

    Raises:
        OSError: a file is missing, or cannot be read or written; `out` exists; the disk is full.
        TypeError: an argument of the wrong kind, or a quantised base.
        ValueError: a damaged or hostile file, an adapter that does not fit the base, a result with
            an Inf or NaN.
        RuntimeError: the device cannot be used or has too little memory.
        MemoryError: this machine has too little memory.

    """
    started = time.monotonic()
    where, pairs = check_arguments(device, adapters, dtype, layout)
    target = check_target(out, base, [folder for folder, _ in pairs])
    with hint_at_swap(base, [folder for folder, _ in pairs]):
        checkpoint = open_checkpoint(base)
        stored = [(read_with_experts(folder, safe=True), weight) for folder, weight in pairs]
    plan = make_plan(checkpoint, stored, dtype=dtype, layout=layout)
    files = sort_side_files(checkpoint, with_code=with_code)
    with open_workspace(target, settings_of(where, stored), plan.shards) as work:
        try:
            resumed = _write_shards(work, checkpoint, plan, files, where, progress)
            write_side_files(work, checkpoint, plan, files, dtype)
            work.publish()
        except (OSError, RuntimeError, MemoryError) as error:
            raise _explained(error, work, len(checkpoint.shards)) from error
        except ValueError:
            # The next run would come to the same end.
            work.finished.clear()
            raise
    return _report(target, checkpoint, plan, files, resumed, time.monotonic() - started)


def _write_shards(
    work: Workspace,
    base: Checkpoint,
    plan: MergePlan,
    files: SideFiles,
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

    planned = {name: fingerprint(tensors) for name, tensors in plan.shards.items()}
    check_space(work, plan, planned, files.size)
    for position, shard in enumerate(base.shards, 1):  # noqa: B007  (advance reads it)
        current, before, wanted = shard.name, done, planned[shard.name]
        advance(0)
        if work.is_finished(shard.name, wanted, shard.path):
            resumed += 1
            advance(shard.size)
            continue
        work.finished.pop(shard.name, None)
        temporary = work.new_file()
        digests = write_shard(shard, plan.shards[shard.name], temporary, device, advance)
        work.keep(temporary, shard.name, wanted, digests)
        done = before + shard.size
    return resumed


def _explained(error: Exception, work: Workspace, shards: int) -> Exception:
    """The error with what it leaves behind."""
    reason = str(error).removeprefix(f"{WHO}: ") or "there is too little memory"
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
