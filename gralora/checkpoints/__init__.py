"""Base models as folders of safetensors shards: read safely, merged into shard by shard.

:mod:`~gralora.checkpoints.folder` opens and checks a folder, :mod:`~gralora.checkpoints.plan` says
what becomes of each tensor, :mod:`~gralora.checkpoints.stream` writes one shard,
:mod:`~gralora.checkpoints.workspace` keeps finished shards until the whole is there, and
:mod:`~gralora.checkpoints.merge` does it all.
"""
