"""The backward operators check what they read, with and without data."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def _call(device: str, **changes: Any) -> Any:
    """linear_backward of a [2, 3] grid on 5 tokens, N = 8, M = 12, r = 4, with changes."""

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    arguments: dict[str, Any] = {
        "dy": tensor(5, 12),
        "x": tensor(5, 8),
        "weight": tensor(12, 8),
        "A": tensor(2, 4, 6),
        "B": tensor(3, 4, 4),
        "lora_A": tensor(2, 8),
        "lora_B": tensor(12, 2),
        "H": tensor(3, 5, 4),
        "lora_H": tensor(5, 2),
        "rng_state": None,
    }
    arguments |= {name: make(tensor) for name, make in changes.items()}
    return torch.ops.gralora.linear_backward(
        *arguments.values(), scaling=1.0, dropout_p=0.0, output_mask=[True] * 7
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": lambda t: t(4, 8)}, r"x must have the leading sizes of dy.*\[4, 8\].*\[5, 12\]"),
        ({"x": lambda t: t(5, 8, dtype=torch.bfloat16)}, "x and dy must have the same dtype"),
        ({"H": lambda t: t(3, 5, 5)}, r"H must be \[k_out, T, k_in\*s\].*\[3, 5, 5\]"),
        ({"H": lambda t: t(3, 4, 4)}, r"H must be .*\[3, 5, 4\].*\[3, 4, 4\]"),
        ({"lora_H": lambda t: t(5, 3)}, r"lora_H must be \[T, r0\].*\[5, 3\]"),
        ({"weight": lambda t: t(12, 8, dtype=torch.float64)}, "dy and weight must have the same"),
    ],
    ids=["x_tokens", "x_dtype", "H_rank", "H_tokens", "lora_H_rank", "weight_dtype"],
)
def test_what_does_not_belong_to_the_call_is_refused(
    changes: dict[str, Any], words: str, device: str
) -> None:
    with pytest.raises((RuntimeError, TypeError), match=f"gralora::linear_backward: .*{words}"):
        _call(device, **changes)


def test_what_belongs_is_accepted() -> None:
    assert [tuple(g.shape) for g in _call("cpu")[:2]] == [(5, 8), (12, 8)]
