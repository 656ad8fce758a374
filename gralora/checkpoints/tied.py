"""Output heads that are the embedding: what an adapter may do to them.

A checkpoint of such a model has no head. To change one of the two alone is to untie them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gralora.adapters.stored import StoredAdapter
from gralora.checkpoints.paths import WHO

_HEADS = frozenset({"lm_head", "embed_out"})
EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"})
_FLAG = "tie_word_embeddings"


@dataclass(frozen=True)
class Tying:
    """Whether a base model's head is its embedding.

    Attributes:
        tied: so says the config, or the checkpoint of a language model has no head.

    """

    tied: bool

    @staticmethod
    def of(config: Mapping[str, Any] | None, keys: Collection[str]) -> Tying:
        """From a config and the keys of the tensors."""
        said = None
        if config is not None:
            text = config.get("text_config")
            inner = text.get(_FLAG) if isinstance(text, dict) else None
            said = config.get(_FLAG, inner)
        if isinstance(said, bool):
            return Tying(said)
        kinds = (config or {}).get("architectures")
        names = map(str, kinds) if isinstance(kinds, list) and kinds else ["LM"]
        has_head = any("LM" in name or "Generation" in name for name in names)
        return Tying(has_head and not any(_part_of(key, _HEADS) for key in keys))


def check_targets(tying: Tying, adapter: StoredAdapter) -> None:
    """Refuse to adapt one side of a tied pair, which would change the other.

    Raises:
        ValueError: such a layer is adapted.

    """
    if not tying.tied:
        return
    for module in adapter.layers:
        if module.rpartition(".")[2] in _HEADS | EMBEDDINGS:
            raise ValueError(
                f"{WHO}: a weight that is merged into must not be shared, got {module}, which is "
                "tied to the embedding in this model (untie them in the base first: clone the "
                f"head's weight, set {_FLAG} to false, and save the model)"
            )


def settle_head(
    tying: Tying, trained: Mapping[str, Tensor], adapter: StoredAdapter
) -> tuple[dict[str, Tensor], bool]:
    """The trained tensors that are to be written, and whether head and embedding part.

    Raises:
        ValueError: only the embedding of a tied pair was trained.

    """
    result = dict(trained)
    heads = [name for name in trained if name.endswith(".weight") and _part_of(name, _HEADS)]
    embeddings = [
        name for name in trained if name.endswith(".weight") and _part_of(name, EMBEDDINGS)
    ]
    if not tying.tied or not (heads or embeddings):
        return result, False
    if not heads:
        raise ValueError(
            f"{WHO}: of an embedding that is tied to the head, both must have been saved, got "
            f"{embeddings[0]} alone in {adapter.directory} (merge in memory, with "
            "gralora.merge_and_unload)"
        )
    if embeddings and torch.equal(trained[heads[0]], trained[embeddings[0]]):
        # They are still one tensor, which the checkpoint has as the embedding.
        for name in heads:
            del result[name]
        return result, False
    return result, True


def _part_of(key: str, names: Collection[str]) -> bool:
    """Whether a tensor belongs to a module whose own name is one of `names`."""
    module = key.rpartition(".")[0]
    return module.rpartition(".")[2] in names
