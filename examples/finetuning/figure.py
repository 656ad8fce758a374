"""Loss curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

# Draws to files, with or without a screen; pyplot has to be told before it is imported.
matplotlib.use("Agg")

from matplotlib import pyplot

# Blue, orange, green and purple that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
# Of the steps: one window of text is much harder than another, so less would show the text.
_SMOOTHING_SHARE = 0.25


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        label: its name in the legend.
        losses: of each training step.
        held_out: steps taken, and the held-out loss then.

    """

    label: str
    losses: Sequence[float]
    held_out: Mapping[int, float]


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and of up to ``width // 2`` neighbours on either side."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def draw(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Write a PNG: training losses, faint as they are and smoothed; held-out losses as points."""
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for curve, colour in zip(curves, _COLOURS, strict=False):
        steps = range(1, len(curve.losses) + 1)
        width = max(1, round(len(curve.losses) * _SMOOTHING_SHARE))
        axes.plot(steps, smoothed(curve.losses, width), color=colour, alpha=0.45, linewidth=1.2)
        if len(curves) == 1:
            axes.plot(steps, curve.losses, color=colour, alpha=0.15, linewidth=0.8)
        held_out = sorted(curve.held_out.items())
        axes.plot(
            [step for step, _ in held_out],
            [loss for _, loss in held_out],
            "o-",
            color=colour,
            label=f"{curve.label}, held out ({held_out[-1][1]:.3f})",
        )
    axes.plot([], [], color="0.5", alpha=0.45, label="training, smoothed")
    axes.set(xlabel="optimiser steps", ylabel="loss per token (nats)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
