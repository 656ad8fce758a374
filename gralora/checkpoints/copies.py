"""Tensors of an adapter that are copies of the base's: they show that it is the right base."""

from __future__ import annotations

import torch

from gralora.adapters.stored import StoredAdapter
from gralora.checkpoints.folder import Checkpoint
from gralora.checkpoints.names import Renaming
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.stream import read_tensor
from gralora.checkpoints.tied import Tying
from gralora.injection.listing import some
from gralora.storage.checked_file import open_regular


def check_copies(
    base: Checkpoint, adapter: StoredAdapter, renaming: Renaming, tying: Tying
) -> None:
    """Raise unless the base has what the adapter has copied from it.

    Raises:
        OSError: a shard cannot be read.
        ValueError: the base has other values, or no such tensor.

    """
    homes = {key: shard for shard in base.shards for key in shard.header.tensors}
    for name, copy in adapter.frozen.items():
        key = renaming.of_tensor(name, homes)
        if key not in homes:
            if tying.tied:
                # The head, which the checkpoint has as the embedding only.
                continue
            raise ValueError(
                f"{WHO}: the base must have what the adapter has a copy of, got no "
                f"{some([key])} for {name} of {adapter.directory}"
            )
        shard = homes[key]
        with open_regular(shard.path) as file:
            own = read_tensor(file, shard.path, key, shard.header.tensors[key])
        if own.shape != copy.shape or not torch.equal(own.to(copy.dtype), copy):
            raise ValueError(
                f"{WHO}: {name} of {adapter.directory} is a frozen tensor and must equal the "
                "base's, got other values (the adapter was trained on another base model)"
            )
