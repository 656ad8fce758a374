"""The picture of an adapter: where tiles stand, and that a file comes out."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters_on_disk import our_adapter
from loose_layers import random_layer

from gralora.adapters.heatmap import check_plot, save_heatmap
from gralora.adapters.heatmap_layout import arrange
from gralora.adapters.inspection import inspect_adapter
from gralora.adapters.write import write_adapter

PNG = b"\x89PNG\r\n\x1a\n"


def test_rows_are_depth_and_columns_are_kinds() -> None:
    kinds = ("self_attn.q_proj", "mlp.up_proj")
    layout = arrange(f"model.layers.{i}.{kind}" for i in (10, 2, 0) for kind in kinds)
    assert layout.rows == ("0", "2", "10")
    assert layout.columns == ("q_proj", "up_proj")
    assert layout.cells["model.layers.10.mlp.up_proj"] == (2, 1)


def test_equal_ends_are_told_apart() -> None:
    layout = arrange(["layers.0.self_attn.q", "layers.0.cross_attn.q"])
    assert layout.columns == ("self_attn.q", "cross_attn.q")


def test_several_lists_of_layers_are_named() -> None:
    layout = arrange([f"{part}.layers.{i}.q" for part in ("encoder", "decoder") for i in (0, 1)])
    assert layout.rows == (
        *("decoder.layers 0", "decoder.layers 1"),
        *("encoder.layers 0", "encoder.layers 1"),
    )
    assert layout.cells["encoder.layers.1.q"] == (3, 0)


def test_layers_without_a_number_share_the_last_row() -> None:
    layout = arrange(["lm_head", "model.layers.0.q", "projector"])
    assert layout.rows == ("0", "others")
    assert layout.cells["lm_head"][0] == layout.cells["projector"][0] == 1


@pytest.mark.parametrize(
    "names", [["a"], ["0", "1"], ["a.0", "b.0"], ["a.0.0.x", "a.0.1.x"]], ids=str
)
def test_no_two_layers_share_a_cell(names: list[str]) -> None:
    assert len(set(arrange(names).cells.values())) == len(names)


def test_png_is_written_and_does_not_change(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    our_adapter(tmp_path / "adapter", k_pattern={"v_proj": (2, 4)})
    report = inspect_adapter(tmp_path / "adapter")
    first = save_heatmap(report, tmp_path / "a.png").read_bytes()
    assert first.startswith(PNG)
    assert save_heatmap(report, tmp_path / "b.png").read_bytes() == first


def test_blocks_that_differ_give_another_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for name, factor in (("a", 1.0), ("b", 5.0)):
        layer = random_layer()
        layer.B[0] *= factor
        write_adapter(tmp_path / "same", {"x": layer})
        report = inspect_adapter(tmp_path / "same")
        pictures.append(save_heatmap(report, tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_fresh_adapter_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    layer = random_layer()
    layer.B.zero_()
    write_adapter(tmp_path, {"x": layer})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_heatmap(inspect_adapter(tmp_path), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def _at_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "a.png"


def _filled(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _dangling(path: Path) -> Path:
    path.symlink_to("missing")
    return path


WRONG_PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another suffix": (lambda folder: folder / "adapter.safetensors", "must end in .png"),
    "no suffix": (lambda folder: folder / "png", "must end in .png"),
    "another file": (lambda folder: _filled(folder / "a.png", b"{}"), "absent or that of a PNG"),
    "an empty file": (lambda folder: _filled(folder / "a.png", b""), "absent or that of a PNG"),
    "a pipe": (lambda folder: _pipe(folder / "a.png"), "absent or that of a PNG"),
    "a link to nothing": (lambda folder: _dangling(folder / "a.png"), "absent or that of a PNG"),
    "a missing folder": (lambda folder: folder / "none" / "a.png", "an existing folder, got no"),
    "in a file": (_at_a_file, "an existing folder, got the file"),
}


@pytest.mark.parametrize("case", WRONG_PATHS)
def test_a_path_that_is_no_place_for_a_picture_is_refused(case: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    make, message = WRONG_PATHS[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((OSError, ValueError), match=message):
        check_plot(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_picture_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_adapter(tmp_path / "adapter", {"x": random_layer()})
    path = _filled(tmp_path / "a.PNG", PNG + b"old")
    save_heatmap(inspect_adapter(tmp_path / "adapter"), path)
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 1000


def test_missing_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path, {"x": random_layer()})
    report = inspect_adapter(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="a plot needs matplotlib"):
        save_heatmap(report, tmp_path / "a.png")
