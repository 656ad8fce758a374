"""Whether the disk has room for what a merge still has to write."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from gralora.adapters.words import size
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.plan import MergePlan
from gralora.checkpoints.workspace import Workspace


def check_space(work: Workspace, plan: MergePlan, planned: Mapping[str, str], beside: int) -> None:
    """Fail early where the disk cannot hold what is still to be written.

    Args:
        work: the folder that it will be written to.
        plan: what becomes of each tensor.
        planned: by name of the shard, the digest of its plan.
        beside: bytes of the files beside the weights.

    Raises:
        OSError: there is too little room.

    """
    more = peak = 0
    for name, tensors in plan.shards.items():
        if work.is_noted(name, planned[name]):
            continue
        more += sum(tensor.size for tensor in tensors)
        peak = max(peak, more)
        # A shard of another plan stays until the new one takes its place.
        more -= work.size_of(name)
    needed = max(peak, more + beside)
    free = shutil.disk_usage(work.path).free
    if free < needed:
        raise OSError(
            f"{WHO}: the disk must have room for what is still to be written, got "
            f"{size(free)} free for {size(needed)}"
        )
