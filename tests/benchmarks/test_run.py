"""The command line, each suite in its smallest form."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run

BENCHMARKS = Path(run.__file__).resolve().parent
SMALL_LAYER = ["layer", "--device", "cpu", "--shapes", "64x32", "--tokens", "8", "--rk", "8:2"]


@pytest.fixture(scope="module")
def layer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result file of a short run of the layer suite, memory included."""
    path = tmp_path_factory.mktemp("results") / "layer.json"
    options = ["--rounds", "9", "--variants", "base,cublas", "--memory", "--json", str(path)]
    assert run.main([*SMALL_LAYER, *options]) == 0
    return path


@pytest.fixture(scope="module")
def layer_record(layer_file: Path) -> dict[str, Any]:
    return json.loads(layer_file.read_text())


def test_layer_result_has_every_timing(layer_record: dict[str, Any]) -> None:
    found = {(t["variant"], t["mode"], t["pass"]) for t in layer_record["timings"]}
    assert found == {(v, "eager", p) for v in ("base", "cublas") for p in ("forward", "step")}


def test_layer_timing_keeps_its_raw_samples(layer_record: dict[str, Any]) -> None:
    timing = layer_record["timings"][-1]
    assert len(timing["samples"]) == 9
    assert timing["seconds"]["minimum"] == min(timing["samples"])


def test_base_over_base_is_one(layer_record: dict[str, Any]) -> None:
    timing = layer_record["timings"][0]
    assert timing["variant"] == "base"
    assert set(timing["ratio"]["base"].values()) == {1.0}


def test_memory_of_the_library_composition_is_x_and_latent(layer_record: dict[str, Any]) -> None:
    found = {entry["variant"]: entry for entry in layer_record["memory"]}
    assert found["base"]["saved_bytes"] == 0
    assert found["cublas"]["saved_bytes"] == 8 * 64 * 4 + 2 * 8 * 8 * 4


def test_memory_alone_times_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    options = ["--variants", "base", "--memory", "--no-timing", "--json", str(path)]
    assert run.main([*SMALL_LAYER, *options]) == 0
    assert json.loads(path.read_text())["timings"] == []


def test_result_can_be_shown(layer_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["show", "--short", str(layer_file)]) == 0
    assert "64→32, T 8, r 8, k 2, fp32" in capsys.readouterr().out


@pytest.fixture(scope="module")
def merge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result file of a short run of the merge suite over two weights with two adapters each."""
    path = tmp_path_factory.mktemp("results") / "merge.json"
    options = ["--device", "cpu", "--shapes", "64x32,32x64", "--rk", "8:2,4:1"]
    chosen = ["--variants", "gralora,delta_weight", "--rounds", "9", "--json", str(path)]
    assert run.main(["merge", *options, *chosen]) == 0
    return path


def test_merge_result_has_copy_as_its_unit(merge_file: Path) -> None:
    copies = [t for t in json.loads(merge_file.read_text())["timings"] if t["variant"] == "copy"]
    assert len(copies) == 4
    assert [c["share_of_copy"]["median"] for c in copies] == pytest.approx([1.0] * 4)


def test_merge_times_what_was_asked_for_on_every_weight(merge_file: Path) -> None:
    timings = json.loads(merge_file.read_text())["timings"]
    cases = [(t["case"]["in_features"], t["case"]["rank"], t["variant"]) for t in timings]
    variants = ("copy", "gralora merge_", "gralora delta_weight")
    assert cases == [(n, r, v) for n in (64, 32) for r in (8, 4) for v in variants]


def test_every_weight_of_a_merge_is_shown(
    merge_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["show", str(merge_file)]) == 0
    shown = capsys.readouterr().out
    for title in ("32x64 fp32, r 8, k 2", "32x64 fp32, r 4, k 1", "64x32 fp32, r 4, k 1"):
        assert f"weight {title}" in shown


def test_a_merge_refuses_what_it_does_not_know(refusal: Callable[[list[str]], str]) -> None:
    known = "gralora,gralora_fp32,delta_weight,peft_gralora,peft_gralora_fp32"
    told = refusal(["merge", "--device", "cpu", "--variants", "cublas"])
    assert f"variants: any of {known}, got cublas" in told
    told = refusal(["merge", "--device", "cpu", "--preset", "smollm2-135m", "--rk", "10:5"])
    assert "rk: k must divide both features, got 576x576, k=5" in told


@pytest.fixture(scope="module")
def kernels_record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Result of a short run of the kernels suite."""
    path = tmp_path_factory.mktemp("results") / "kernels.json"
    options = ["--device", "cpu", "--shapes", "64x32", "--tokens", "8", "--rk", "8:2"]
    assert run.main(["kernels", *options, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_kernels_result_has_every_step(kernels_record: dict[str, Any]) -> None:
    assert [timing["variant"] for timing in kernels_record["timings"]] == [
        "project H",
        "project G",
        "expand y",
        "expand dx",
        "weight gradient",
        "exchange",
        "round",
        "merge",
        "dropout",
    ]


def test_share_of_floor_is_the_slower_of_copying_and_multiplying(
    kernels_record: dict[str, Any],
) -> None:
    timing = kernels_record["timings"][0]
    best = kernels_record["yardsticks"][0]
    round_ = 4
    copying = best["long_copy"]["samples"][round_] / best["long_copy"]["bytes_moved"]
    multiplying = best["square_product"]["samples"][round_] / best["square_product"]["flop"]
    floor = max(copying * timing["bytes_moved"], multiplying * timing["flop"])
    share = timing["share_of_floor"]
    assert share["minimum"] <= floor / timing["samples"][round_] <= share["maximum"]


def test_kernels_on_a_cpu_have_one_path(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(["kernels", "--device", "cpu", "--path", "aten,sm80"])
    assert "path: a CPU has library calls alone, got aten,sm80" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "3"], "rounds: at least 9, got 3"),
        (["--variants", "base,nothing"], "got nothing"),
        (["--mode", "graph"], "mode: a CPU has eager alone"),
        (["--rk", "9:3"], "rk: k must divide both features, got 64x32, k=3"),
    ],
    ids=["rounds", "variants", "mode", "grid"],
)
def test_wrong_option_is_explained(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal([*SMALL_LAYER, *arguments])


def test_sources_beside_the_script_are_not_imported(layer_file: Path) -> None:
    """Not even where PYTHONPATH names the checkout and the process starts in it."""
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import run; "
        f"run.main(['show', {str(layer_file)!r}]); print(sys.path)"
    )
    root = BENCHMARKS.parent
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    path = answer.stdout.splitlines()[-1]
    assert repr(str(root)) not in path
    assert "''" not in path
