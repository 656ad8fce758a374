"""The factors with which PiSSA adapters of a layer started: buffers that keep their precision."""

from __future__ import annotations

from collections.abc import Callable, KeysView
from typing import Any

import torch
from torch import Tensor, nn

_LOW_PRECISION = (torch.bfloat16, torch.float16)


class Principals(nn.Module):
    """Frozen factors by the names of their adapters.

    They are what the weight lacks, so they are buffers: ``requires_grad_``, optimisers and counts
    of trained parameters do not reach them. For the same reason a cast of the model to 16 bits
    leaves them in float32: rounded, they would no longer be what was taken out of the weight.
    """

    def __getitem__(self, name: str) -> Tensor:
        factor = self._buffers[name]
        assert factor is not None
        return factor

    def __setitem__(self, name: str, factor: Tensor) -> None:
        self.register_buffer(name, factor)

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._buffers

    def keys(self) -> KeysView[str]:
        """Names of the adapters that have such a factor."""
        return self._buffers.keys()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keeping_precision(factor: Tensor) -> Tensor:
            moved = fn(factor)
            if moved.dtype in _LOW_PRECISION and factor.dtype not in _LOW_PRECISION:
                return factor.to(device=moved.device, dtype=torch.float32)
            return moved

        return super()._apply(keeping_precision, recurse)  # type: ignore[no-untyped-call]
