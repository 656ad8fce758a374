"""Drawn pictures of three shapes, filled or in outline: a set that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

SIZE = 16
SHAPES = ("disc", "square", "triangle")

Style = Literal["filled", "outline"]


def draw(style: Style, count: int, seed: int) -> dict[str, Tensor]:
    """Return `count` pictures of one shape each, at random places and in random sizes.

    Returns:
        ``pixels [count, 1, SIZE, SIZE]``, float32 from -1 (paper) to 1 (ink), and ``labels
        [count]``, int64 indices of :data:`SHAPES`.

    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(SHAPES), (count,), generator=generator)
    radius = 3.5 + 3.0 * torch.rand(count, 1, 1, generator=generator)
    # The whole shape lies within the picture.
    free = (SIZE - 1) / 2 - radius
    y, x = (
        torch.arange(SIZE)
        - (SIZE - 1) / 2
        - free * (2 * torch.rand(free.shape, generator=generator) - 1)
        for _ in range(2)
    )
    x, y = x.expand(count, SIZE, SIZE), y.mT.expand(count, SIZE, SIZE)
    distances = torch.stack([_disc(x, y), _square(x, y), _triangle(x, y)])
    # In pixels, negative inside of the shape.
    distance = distances[labels, torch.arange(count)] - radius
    if style == "outline":
        distance = distance.add(0.75).abs() - 0.75
    pixels = (-2 * distance).clamp(-1, 1)
    return {"pixels": pixels[:, None].contiguous(), "labels": labels}


def save(rows: list[Tensor], path: Path) -> None:
    """Write a PNG with one line of pictures for each tensor ``[count, 1, SIZE, SIZE]``."""
    from PIL import Image

    lines = [torch.cat(list(row[:, 0].float().cpu()), dim=1) for row in rows]
    gray = ((1 - torch.cat(lines)) * 127.5).clamp(0, 255).to(torch.uint8)
    image = Image.fromarray(gray.numpy())
    image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST).save(path)


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt()


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs())


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Upright, its tip at the top."""
    return torch.maximum(y, 1.79 * x.abs() - 0.89 * y) * 0.9 + 0.1 * y.abs()
