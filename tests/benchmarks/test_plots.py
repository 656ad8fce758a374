"""What the plots show, and that they are written."""

import json
from pathlib import Path
from typing import Any

import plot
import pytest
import report_docs

from gralora.bench.plot_panels import panels
from gralora.bench.plots import caption

RESULTS = report_docs.RESULTS


def _record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_bars_are_ratios_over_the_frozen_layer() -> None:
    record = _record("cpu_layer")
    (panel,) = [panel for panel in panels(record) if panel.title.startswith("step")]
    expected = {
        timing["variant"]: [timing["ratio"]["base"]["median"]]
        for timing in record["timings"]
        if timing["pass"] == "step" and timing["variant"] != "base"
    }
    assert panel.series == expected


def test_several_token_counts_are_an_axis() -> None:
    panel = panels(_record("h100_cold"))[0]
    assert panel.tokens == [1, 16, 512, 2048]


def test_one_token_count_is_no_axis() -> None:
    assert all(panel.tokens is None for panel in panels(_record("h100_layer")))


def test_copies_are_no_bars_of_the_merge_plot() -> None:
    (panel,) = panels(_record("h100_merge"))
    assert not any(name.startswith("copy") for name in panel.series)


def test_caption_names_the_conditions() -> None:
    record = _record("h100_layer")
    found = caption(record)
    assert record["environment"]["gpu"]["name"] in found
    assert record["environment"]["commit"][:12] in found
    assert f"torch {record['environment']['packages']['torch']}" in found


def test_record_without_timings_is_refused() -> None:
    with pytest.raises(ValueError, match="hold no timings"):
        panels(_record("h100_memory"))


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="one of kernels, layer, model, host, merge, got 'x'"):
        panels({"suite": "x"})


@pytest.mark.parametrize("name", ["cpu_layer", "h100_cold", "h100_merge"])
def test_script_writes_a_picture(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot.main([str(RESULTS / f"{name}.json"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
