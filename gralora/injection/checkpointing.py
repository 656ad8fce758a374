"""Inputs that require gradients, without which reentrant checkpointing returns none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_FLAG = "gradient_checkpointing"


class RequireGradWhileCheckpointing:
    """Forward hook of input embeddings.

    Reentrant checkpointing gives gradients to a block only where one of the block's inputs requires
    them, and the embeddings of a frozen model do not. An object, not a closure, so that models
    can be copied and pickled.

    Args:
        modules: those whose flag ``gradient_checkpointing`` says whether it is on.

    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Let `output` require gradients where a block will be checkpointed."""
        for block in self.modules:
            if getattr(block, _FLAG, False) and block.training:
                if torch.is_grad_enabled() and _can_require_grad(output):
                    output.requires_grad_(True)
                return


def _can_require_grad(output: object) -> bool:
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and not output.requires_grad
        and not output.is_inference()
    )


def install(model: nn.Module) -> None:
    """Register the hook on the input embeddings of a model, where it has them and checkpoints."""
    blocks = [module for module in model.modules() if hasattr(module, _FLAG)]
    if not blocks:
        return
    for embeddings in _input_embeddings(model):
        embeddings.register_forward_hook(RequireGradWhileCheckpointing(blocks))


def remove(model: nn.Module) -> None:
    """Take the hook off again; modules that are to be copied must not carry it."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, RequireGradWhileCheckpointing):
                del module._forward_hooks[key]


def _input_embeddings(model: nn.Module) -> Iterator[nn.Module]:
    seen: set[int] = set()
    for module in model.modules():
        get_embeddings = getattr(module, "get_input_embeddings", None)
        if not callable(get_embeddings):
            continue
        try:
            embeddings = get_embeddings()
        except NotImplementedError:
            continue
        if isinstance(embeddings, nn.Module) and id(embeddings) not in seen:
            seen.add(id(embeddings))
            yield embeddings
