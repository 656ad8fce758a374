"""Base models as folders of safetensors shards: read safely, merged into shard by shard.

:func:`merge_checkpoint` does it all. :mod:`~gralora.checkpoints.folder` opens and checks a folder,
:mod:`~gralora.checkpoints.plan` says what becomes of each tensor,
:mod:`~gralora.checkpoints.stream` writes one shard, and :mod:`~gralora.checkpoints.workspace` keeps
finished shards until the whole is there.
"""

from gralora.checkpoints.merge import MergeReport, Progress, merge_checkpoint

__all__ = ["MergeReport", "Progress", "merge_checkpoint"]
