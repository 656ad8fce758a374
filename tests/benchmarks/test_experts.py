"""The layer suite over the experts of a mixture-of-experts layer, on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import run
import torch
from doc_tables import conditions

from gralora.bench import experts
from gralora.bench.case import Variant, case_text
from gralora.bench.experts_case import ExpertsCase, parse_experts
from gralora.bench.layer import Settings
from gralora.bench.layer_records import Recorder
from gralora.bench.plot_panels import panels

SMALL = ["layer", "--device", "cpu", "--base", "moe", "--experts", "32x16:4:2", "--tokens", "6"]
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Result of a short run."""
    pytest.importorskip("peft")
    pytest.importorskip("transformers.integrations.moe")
    path = tmp_path_factory.mktemp("results") / "moe.json"
    assert run.main([*SMALL, "--rk", "8:2", "--rounds", "9", "--json", str(path)]) == 0
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def case(**changes: object) -> ExpertsCase:
    values = {"in_features": 32, "out_features": 16, "tokens": 6, "rank": 8, "grid": 2}
    return ExpertsCase(**{**values, "dtype": "fp32", "experts": 4, "chosen": 2, **changes})


def test_every_variant_is_timed(record: dict[str, Any]) -> None:
    found = {(t["variant"], t["pass"]) for t in record["timings"]}
    names = ("base", "peft_lora", "gralora")
    assert found == {(name, part) for name in names for part in ("forward", "step")}
    assert all(t["ratio"]["base"]["median"] > 0 for t in record["timings"])


def test_results_agree_with_experts_one_by_one(record: dict[str, Any]) -> None:
    (agreement,) = record["agreement"]
    assert agreement["variant"] == "gralora"
    assert set(agreement["errors"]) == {"y", "dx", "dA", "dB"}
    assert all(0 < error < 1e-4 for error in agreement["errors"].values())


def test_a_wrong_result_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers.integrations.moe")

    def halved(case: ExpertsCase, routed: experts.Routed) -> Variant:
        built = experts._gralora(case, routed)
        shell: Any = built.modules[0]
        shell.register_forward_hook(lambda module, inputs, y: y / 2)
        return built

    monkeypatch.setitem(experts._BUILDERS, "gralora", halved)
    recorder = Recorder(lambda label, done, total: None)
    settings = Settings(CPU, ["base", "gralora"], ["eager"], rounds=9, memory=False)
    experts.run_experts(case(), settings, recorder)
    found = recorder.as_dict()
    assert {t["variant"] for t in found["timings"]} == {"base"}
    assert "wrong result" in found["skipped"][0]["reason"]


def test_results_say_what_they_are_of(record: dict[str, Any]) -> None:
    text = "32→16, T 6, r 8, k 2, fp32, 4 experts, 2 for each token"
    assert {case_text(t["case"]) for t in record["timings"]} == {text}
    assert "transformers" in conditions(record)
    assert panels(record)


def test_products_and_weights() -> None:
    found = case()
    assert found.products == ((12, 32, 32), (12, 16, 32))
    assert found.weight_elements == 4 * 3 * 32 * 16


def test_plain_layers_beside_experts(tmp_path: Path) -> None:
    pytest.importorskip("transformers.integrations.moe")
    path = tmp_path / "both.json"
    options = ["--base", "plain,moe", "--shapes", "64x32", "--variants", "base,gralora"]
    assert run.main([*SMALL, *options, "--rk", "8:2", "--rounds", "9", "--json", str(path)]) == 0
    bases = [t["case"]["base"] for t in json.loads(path.read_text())["timings"]]
    assert bases == ["plain"] * 4 + ["moe"] * 4


@pytest.mark.parametrize("text", ["32x16", "32x16:4", "32x16:2:3", "32x0:4:2", "a", ""])
def test_other_forms_of_experts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="experts: HIDDENxINSIDE:EXPERTS:CHOSEN"):
        parse_experts(text)


def test_forms_of_experts() -> None:
    assert parse_experts("32x16:4:2,8x8:1:1") == [(32, 16, 4, 2), (8, 8, 1, 1)]
