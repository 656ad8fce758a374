"""An adapter as a picture: how much each block of each layer has changed. Needs matplotlib."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

from gralora.adapters.heatmap_layout import Layout, arrange
from gralora.adapters.inspection import AdapterReport, LayerReport
from gralora.adapters.words import by
from gralora.injection.listing import shown
from gralora.storage.atomic import replace_files
from gralora.storage.checked_file import open_regular

_TILE_INCHES = (1.05, 0.36)
_GAP = 0.06
_MARGINS = (2.9, 2.3)
_MOST_INCHES = 60.0
_COLOURS = "magma"
_EMPTY = "0.93"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_plot(path: str | os.PathLike[str]) -> None:
    """Say before anything is measured that a plot could not be saved.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the path is a folder or another file than a PNG, or its folder is missing or cannot
            be written.
        ValueError: the path does not end in ``.png``.

    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError(
            "save_heatmap: a plot needs matplotlib (pip install matplotlib)"
        ) from None
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"save_heatmap: path must be that of a file, got the folder {path}")
    if target.suffix.lower() != ".png":
        raise ValueError(f"save_heatmap: path must end in .png, got {path}")
    _check_folder(target.absolute().parent)
    if os.path.lexists(target):
        _check_replaceable(target)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        kind = "the file" if folder.exists() else "no folder at"
        raise NotADirectoryError(
            f"save_heatmap: path must lie in an existing folder, got {kind} {folder}"
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"save_heatmap: path must lie where one can write, got {folder}")


def _check_replaceable(target: Path) -> None:
    """Refuse to take away a file that is no picture, whatever its name says."""
    try:
        with open_regular(target) as file:
            is_picture = file.read(len(_SIGNATURE)) == _SIGNATURE
    except (OSError, ValueError):
        is_picture = False
    if not is_picture:
        raise FileExistsError(
            f"save_heatmap: path must be absent or that of a PNG, got {target}, which is something "
            "else"
        )


def save_heatmap(report: AdapterReport, path: str | os.PathLike[str]) -> Path:
    """Draw block norms, one tile for each layer, cut as its grid is.

    Rows are the model's layers from the first on, columns the kinds of projections. The colour of a
    block is the root mean square of its numbers in ΔW, so that blocks of all sizes compare; in a
    tile, output blocks go from top to bottom and input blocks from left to right. The bars at the
    right show ΔW's norm of each row.

    Args:
        report: of :func:`gralora.adapters.inspection.inspect_adapter`.
        path: ends in ``.png``, in an existing folder; a PNG that is there is replaced.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written, or is there and no PNG.
        ValueError: the path does not end in ``.png``.

    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    layout = arrange(report.layers)
    height, width = len(layout.rows), len(layout.columns)
    size = (
        min(width * _TILE_INCHES[0] + _MARGINS[0], _MOST_INCHES),
        min(height * _TILE_INCHES[1] + _MARGINS[1], _MOST_INCHES),
    )
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    tiles, bars = figure.subplots(1, 2, sharey=True, width_ratios=[width * _TILE_INCHES[0], 1.0])
    image = _draw_tiles(tiles, report, layout)
    _draw_bars(bars, report, layout)
    ticks = ScalarFormatter()
    ticks.set_powerlimits((-2, 3))
    scale = figure.colorbar(
        image, ax=[tiles, bars], location="bottom", aspect=50, pad=0.02, format=ticks
    )
    scale.set_label("root mean square of ΔW in a block")
    scale.ax.tick_params(labelsize=8)
    scale.outline.set_visible(False)
    figure.suptitle(shown(_title(report)), fontsize=11, x=0.01, ha="left", parse_math=False)
    picture = io.BytesIO()
    # Without the version of matplotlib in it the file changes only with the adapter.
    figure.savefig(picture, dpi=110, format="png", metadata={"Software": None})
    target = Path(path)
    replace_files(target.parent, [(target.name, lambda file: _write(file, picture))])
    return target


def _write(file: BinaryIO, picture: io.BytesIO) -> None:
    file.write(picture.getbuffer())


def _title(report: AdapterReport) -> str:
    base = f" on {report.base_model}" if report.base_model else ""
    grids = sorted({(layer.spec.k_out, layer.spec.k_in) for layer in report.layers.values()})
    first = ", ".join(by(*grid) for grid in grids[:3])
    more = ", …" if len(grids) > 3 else ""
    return (
        f"{report.directory.name}{base}: {len(report.layers)} layers, grid {first}{more}, "
        f"{report.parameters:,} parameters"
    )


def _draw_tiles(axis: Any, report: AdapterReport, layout: Layout) -> Any:
    values = {name: layer.block_rms for name, layer in report.layers.items()}
    largest = max(number for tile in values.values() for row in tile for number in row)
    axis.set_facecolor("white")
    image = None
    for row in range(len(layout.rows)):
        for column in range(len(layout.columns)):
            axis.add_patch(_empty_tile(row, column))
    for name, (row, column) in layout.cells.items():
        image = axis.imshow(
            values[name],
            cmap=_COLOURS,
            vmin=0.0,
            vmax=largest or 1.0,
            extent=(column + _GAP / 2, column + 1 - _GAP / 2, row + 1 - _GAP, row + _GAP),
            aspect="auto",
            interpolation="nearest",
        )
    axis.set_xlim(0, len(layout.columns))
    axis.set_ylim(len(layout.rows), 0)
    axis.set_xticks(
        [column + 0.5 for column in range(len(layout.columns))],
        list(map(shown, layout.columns)),
        fontsize=8,
        parse_math=False,
    )
    axis.xaxis.tick_top()
    axis.set_yticks(
        [row + 0.5 for row in range(len(layout.rows))],
        list(map(shown, layout.rows)),
        fontsize=8,
        parse_math=False,
    )
    axis.set_ylabel("layer")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def _empty_tile(row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column + _GAP / 2, row + _GAP), 1 - _GAP, 1 - 2 * _GAP, facecolor=_EMPTY, zorder=0
    )


def _draw_bars(axis: Any, report: AdapterReport, layout: Layout) -> None:
    layers: list[list[LayerReport]] = [[] for _ in layout.rows]
    for name, (row, _) in layout.cells.items():
        layers[row].append(report.layers[name])
    norms = [math.hypot(*(layer.norm for layer in row)) for row in layers]
    axis.barh([row + 0.5 for row in range(len(norms))], norms, height=0.7, color="0.45")
    axis.xaxis.tick_top()
    axis.set_title("‖ΔW‖", fontsize=9)
    axis.tick_params(length=0, labelsize=7)
    axis.locator_params(axis="x", nbins=3)
    for side in ("right", "bottom", "left"):
        axis.spines[side].set_visible(False)
