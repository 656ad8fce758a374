"""``gralora bench``: the suites that come with the package."""

from __future__ import annotations

import json

SMALL = ("--device", "cpu", "--shapes", "16x16", "--tokens", "2", "--rk", "4:2", "--rounds", "9")


def test_layer_runs_without_the_repository(python, tmp_path):
    path = tmp_path / "layer.json"
    options = ("--variants", "base,cublas,gralora", "--json", str(path))
    result = python("-m", "gralora", "bench", "layer", *SMALL, *options)
    assert result.returncode == 0, result.stderr
    record = json.loads(path.read_text())
    assert {timing["variant"] for timing in record["timings"]} == {"base", "cublas", "gralora"}


def test_record_names_the_command(python, tmp_path):
    path = tmp_path / "kernels.json"
    options = (*SMALL, "--steps", "round", "--json", str(path))
    result = python("-m", "gralora", "bench", "kernels", *options)
    assert result.returncode == 0, result.stderr
    command = json.loads(path.read_text())["environment"]["command"]
    assert command.startswith("gralora bench kernels --device cpu")


def test_variant_without_its_package_is_skipped_with_a_line(python, tmp_path):
    (tmp_path / "peft.py").write_text("raise ImportError('no module of that name')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from gralora.cli import main; "
        f"main(['bench', 'layer', *{SMALL!r}, '--variants', 'base,peft_lora'])"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "skipped peft_lora: peft cannot be imported: no module of that name" in result.stdout


def test_plot_without_matplotlib_is_an_error(python, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no module of that name')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from gralora.cli import main; "
        f"main(['bench', 'layer', *{SMALL!r}, '--plot', 'x.png'])"
    )
    result = python("-c", code)
    assert result.returncode == 2
    assert "plot: needs matplotlib (pip install matplotlib)" in result.stderr


def test_help_lists_the_suites(python):
    result = python("-m", "gralora", "bench", "--help")
    assert result.returncode == 0
    assert "{layer,kernels,show}" in result.stdout


def test_import_of_the_package_leaves_the_benchmarks_alone(python):
    code = "import sys, gralora.nn; print([m for m in sys.modules if 'gralora.bench' in m])"
    assert python("-c", code).stdout.strip() == "[]"
