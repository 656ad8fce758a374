"""From an adapter's module names to the keys of a checkpoint.

Both come from the same model, but transformers may have added or stripped a prefix in between:
``transformer.h.0.attn`` of GPT-2 is ``h.0.attn`` in its checkpoint, and the language model inside a
model for images and text has moved more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass

from gralora.checkpoints.paths import WHO
from gralora.injection.listing import some

# What the blocks of experts are called in models, and in the checkpoints of some.
# Source: the weight conversions of transformers 5.
EXPERT_BLOCKS = (".mlp.", ".block_sparse_moe.")


@dataclass(frozen=True)
class Renaming:
    """How names of the adapter become names of the checkpoint.

    Attributes:
        old: prefix of the adapter's names, with its last dot; empty for none.
        new: what the checkpoint has instead.
        exact: names that are the same in both.

    """

    old: str = ""
    new: str = ""
    exact: frozenset[str] = frozenset()

    def __call__(self, name: str) -> str:
        """The checkpoint's name of a module."""
        if name in self.exact or not name.startswith(self.old):
            return name
        return self.new + name.removeprefix(self.old)

    def of_tensor(self, name: str, keys: Container[str]) -> str:
        """The checkpoint's name of a tensor that is no adapted weight, such as a saved router.

        Args:
            name: in the adapter.
            keys: of the checkpoint; the result is none of them where it lacks the tensor.

        """
        key = self(name)
        of_block = key.replace(*EXPERT_BLOCKS)
        return of_block if key not in keys and of_block in keys else key

    @property
    def changes(self) -> bool:
        """Whether any name differs."""
        return self.old != self.new


def find_renaming(
    modules: Collection[str], keys: Collection[str], fits: Callable[[str, str], bool]
) -> Renaming:
    """The one change of prefixes under which every module has a weight in the checkpoint.

    Args:
        modules: names of the adapted modules.
        keys: of the checkpoint's tensors.
        fits: whether a module's adapter has the shape of a key's tensor.

    Raises:
        ValueError: no change of prefixes does it, or several do.

    """
    exact = frozenset(module for module in modules if f"{module}.weight" in keys)
    lacking = sorted(set(modules) - exact)
    if not lacking:
        return Renaming()
    found = {
        rule
        for rule in _candidates(lacking[0], keys)
        if all(
            f"{rule(module)}.weight" in keys and fits(module, f"{rule(module)}.weight")
            for module in lacking
            if module.startswith(rule.old)
        )
        and all(module.startswith(rule.old) for module in lacking)
    }
    if len(found) == 1:
        rule = found.pop()
        return Renaming(rule.old, rule.new, exact)
    if not found:
        weights = (key for key in keys if key.endswith(".weight"))
        raise ValueError(
            f"{WHO}: the adapter must fit the base model, got {len(lacking)} of {len(modules)} "
            f"adapted modules without a weight of their shape there: {some(lacking)} (the base "
            f"has {some(sorted(weights))})"
        )
    ways = sorted(f"{rule.old or 'nothing'} to {rule.new or 'nothing'}" for rule in found)
    raise ValueError(
        f"{WHO}: the adapter's names must fit the base model's in one way, got {some(ways)}"
    )


def _candidates(module: str, keys: Iterable[str]) -> Iterable[Renaming]:
    """Changes of prefix that give a module some weight; numbers of layers stay as they are."""
    parts = module.split(".")
    for key in keys:
        if not key.endswith(".weight"):
            continue
        theirs = key.removesuffix(".weight").split(".")
        common = 0
        while common < min(len(parts), len(theirs)) and parts[-1 - common] == theirs[-1 - common]:
            common += 1
        old, new = parts[: len(parts) - common], theirs[: len(theirs) - common]
        if common and not any(part.isdigit() for part in (*old, *new)):
            yield Renaming(_prefix(old), _prefix(new))


def _prefix(parts: Iterable[str]) -> str:
    return "".join(f"{part}." for part in parts)
