"""Result files as pictures; needs matplotlib. `plot_panels` says what is drawn."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from gralora.bench.bases import libraries
from gralora.bench.labels import label_of
from gralora.bench.plot_panels import Panel, Record, panels

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_HATCHES = ("", "//")
# The same variant has the same colour in every plot; ours stand out.
_COLOUR_OF = {
    "gralora": "#D55E00",
    "gralora_fp32": "#E69F00",
    "gralora_functional": "#F0E442",
    "peft_accelerated": "#999999",
    "cublas": "#0072B2",
    "peft_lora": "#56B4E9",
    "peft_gralora": "#009E73",
    "peft_gralora_fp32": "#CC79A7",
    "peft_gralora_autocast": "#000000",
    # No plot has these beside those above whose colours are near.
    "gralora_shared": "#882255",
    "gralora_shared_fp32": "#332288",
    "gralora_aten": "#117733",
    "gralora_sm80": "#DDCC77",
    "gralora_sm90": "#44AA99",
    "chosen": "#D55E00",
    "sm80": "#D55E00",
    "sm90": "#009E73",
    "aten": "#0072B2",
}
_PANEL_INCHES = (9.0, 3.2)
_GROUP_INCHES = 1.05
_CAPTION_WIDTH = 130


def save_plot(record: Record, path: Path) -> Path:
    """Draw a record as one PNG.

    Args:
        record: a result file's.
        path: the file; its folder is made.

    Raises:
        ValueError: as `panels`.
        ImportError: matplotlib is missing.
    """
    drawn = panels(record)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _PANEL_INCHES
    width = max(width, _GROUP_INCHES * max(len(panel.groups) for panel in drawn))
    figure = Figure(figsize=(width, height * len(drawn) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axis, panel in zip(axes, drawn, strict=True):
        if panel.tokens is None:
            _draw_bars(axis, panel)
        else:
            _draw_lines(axis, panel)
        axis.axhline(panel.reference, color="0.4", linewidth=0.8)
        axis.set_title(panel.title, loc="left", fontsize=10)
        axis.set_ylabel(panel.label)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.supxlabel(textwrap.fill(caption(record), _CAPTION_WIDTH), fontsize=7, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in it the file changes only with the results.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def caption(record: Record) -> str:
    """Where, with what and how often it was measured."""
    found = record["environment"]
    gpu = found.get("gpu")
    where = found["cpu"]
    if gpu:
        driver = (gpu.get("state") or {}).get("driver_version")
        where = gpu["name"] + (f", driver {driver}" if driver else "")
        where += f", CUDA {gpu['torch_cuda']}"
    versions = [
        f"{name} {found['packages'][name]}"
        for name in ("gralora", "torch", "peft", "transformers", *libraries(record["settings"]))
        if found["packages"].get(name)
    ]
    rounds = record["settings"]["rounds"]
    return (
        f"{where}; {', '.join(versions)}; commit {found['commit'][:12]}; "
        f"medians of {rounds} interleaved rounds; {found['date'][:10]}"
    )


def _draw_bars(axis: Any, panel: Panel) -> None:
    width = 0.82 / len(panel.series)
    for index, (name, values) in enumerate(panel.series.items()):
        offset = (index - (len(panel.series) - 1) / 2) * width
        axis.bar(
            [group + offset for group, value in enumerate(values) if value is not None],
            [value for value in values if value is not None],
            width,
            label=label_of(name),
            color=_COLOUR_OF.get(name, _COLOURS[index % len(_COLOURS)]),
            hatch=_HATCHES[index // len(_COLOURS) % len(_HATCHES)],
            edgecolor="white",
        )
    axis.set_xticks(range(len(panel.groups)), panel.groups, fontsize=8)


def _draw_lines(axis: Any, panel: Panel) -> None:
    tokens = panel.tokens or ()
    for index, (name, values) in enumerate(panel.series.items()):
        points = [
            (count, value) for count, value in zip(tokens, values, strict=True) if value is not None
        ]
        axis.plot(
            [count for count, _ in points],
            [value for _, value in points],
            label=label_of(name),
            color=_COLOUR_OF.get(name, _COLOURS[index % len(_COLOURS)]),
            linestyle=("-", "--")[index // len(_COLOURS) % 2],
            marker="os^Dv<>P"[index % 8],
            markersize=4,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(tokens, [f"{count}" for count in tokens])
    axis.minorticks_off()
    axis.set_xlabel("tokens")
