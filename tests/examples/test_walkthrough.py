"""The notebook: it runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
for package in ("ipykernel", "matplotlib", "peft", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed")

PATH = Path(__file__).parents[2] / "examples" / "walkthrough.ipynb"


def _read() -> Any:
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after it ran on the CPU, with what it wrote in a folder of the tests."""
    notebook = _read()
    folder = tmp_path_factory.mktemp("walkthrough")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("TMPDIR", str(folder)),
            ("CUDA_VISIBLE_DEVICES", ""),
            ("HF_HUB_OFFLINE", "1"),
        ):
            patch.setenv(name, value)
        client = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        return client.execute()


def test_it_is_kept_without_outputs() -> None:
    notebook = _read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell.metadata == {}


def _shown(run: Any, name: str) -> Any:
    """What the cell of that id gives."""
    (cell,) = (cell for cell in run.cells if cell.id == name)
    (output,) = (output for output in cell.outputs if output.get("name") != "stderr")
    return output


def test_it_learns(run: Any) -> None:
    first, last = map(float, re.findall(r"[\d.]+", _shown(run, "loop").data["text/plain"]))
    assert last < 0.1 * first


def test_it_shows_every_layer_and_the_picture(run: Any) -> None:
    table = _shown(run, "inspect").text
    assert len(re.findall(r"^\d\.(?:self_attn|mlp)\.\w+_proj ", table, re.MULTILINE)) == 14
    assert "image/png" in _shown(run, "heatmap").data


def test_it_exports_the_rank_that_it_names(run: Any) -> None:
    text = " ".join(cell.source for cell in run.cells)
    (rank,) = re.findall(r"`k · r = (\d+)`", text)
    assert _shown(run, "export-lora").data["text/plain"] == rank


def test_the_model_is_as_large_as_it_says(run: Any) -> None:
    (thousands,) = re.findall(r"Llama of (\d+) thousand", run.cells[0].source)
    assert round(int(_shown(run, "save-base").data["text/plain"]) / 1e3) == int(thousands)


def test_links_lead_to_files() -> None:
    text = " ".join(cell.source for cell in _read().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert links
    assert all((PATH.parent / link).exists() for link in links)
