"""The layer suite over layers that read one input, on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run
import torch
from doc_tables import conditions, tables
from torch import Tensor

from gralora.bench import shared
from gralora.bench.case import Case, Variant, case_text
from gralora.bench.layer import Settings, draw_operands, step
from gralora.bench.layer_records import Recorder, _flop, _least_bytes
from gralora.bench.plot_panels import panels
from gralora.bench.shared_case import SharedCase, parse_groups

SMALL = ["layer", "--device", "cpu", "--base", "shared", "--groups", "32x16+8+8", "--tokens", "6"]
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Result of a short run."""
    pytest.importorskip("peft")
    path = tmp_path_factory.mktemp("results") / "shared.json"
    names = "base,peft_lora,peft_gralora,gralora,gralora_shared"
    options = ["--rk", "8:2", "--rounds", "9", "--variants", names, "--json", str(path)]
    assert run.main([*SMALL, *options]) == 0
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def case(**changes: object) -> SharedCase:
    values = {"in_features": 32, "out_features": 32, "tokens": 6, "rank": 8, "grid": 2}
    return SharedCase(**{**values, "dtype": "fp32", "widths": (16, 8, 8), **changes})


def run_case(case: SharedCase, names: list[str]) -> dict[str, Any]:
    recorder = Recorder(lambda label, done, total: None)
    shared.run_shared(case, Settings(CPU, names, ["eager"], rounds=9, memory=False), recorder)
    return recorder.as_dict()


def test_every_variant_is_timed(record: dict[str, Any]) -> None:
    found = {(t["variant"], t["pass"]) for t in record["timings"]}
    names = ("base", "peft_lora", "peft_gralora", "gralora", "gralora_shared")
    assert found == {(name, part) for name in names for part in ("forward", "step")}
    assert all(t["ratio"]["base"]["median"] > 0 for t in record["timings"])


def test_results_agree_with_each_layers_reference(record: dict[str, Any]) -> None:
    found = {entry["variant"]: entry["errors"] for entry in record["agreement"]}
    assert set(found) == {"peft_gralora", "gralora", "gralora_shared"}
    for errors in found.values():
        assert set(errors) == {"y", "dx", "dA", "dB"}
        assert all(0 < error < 1e-5 for error in errors.values())


def test_adapters_in_fp32_beside_16_bits() -> None:
    found = run_case(case(dtype="bf16"), ["base", "gralora_shared_fp32"])
    assert {t["variant"] for t in found["timings"]} == {"base", "gralora_shared_fp32"}


def test_adapters_in_fp32_are_no_variant_of_their_own_beside_fp32() -> None:
    found = run_case(case(), ["base", "gralora_shared_fp32"])
    assert {t["variant"] for t in found["timings"]} == {"base"}
    assert found["skipped"][0]["reason"] == "fp32 adapters are the usual ones beside fp32"


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_wrong_result_of_any_layer_is_left_out(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = shared._together

    def halved(*arguments: Any) -> Any:
        call = right(*arguments)

        def wrong(x: Tensor) -> tuple[Tensor, ...]:
            return tuple(y / 2 if i == layer else y for i, y in enumerate(call(x)))

        return wrong

    monkeypatch.setattr(shared, "_together", halved)
    found = run_case(case(), ["base", "gralora_shared"])
    assert {t["variant"] for t in found["timings"]} == {"base"}
    assert "wrong result" in found["skipped"][0]["reason"]


def test_step_of_the_frozen_layers_sums_their_input_gradients() -> None:
    found = case()
    torch.manual_seed(0)
    layers = [torch.nn.Linear(32, width, bias=False) for width in found.widths]
    (operands,) = draw_operands(found, 1, CPU)
    base = Variant("base", [lambda x: tuple(layer(x) for layer in layers)], [()], 0)
    (dx,) = step(base, operands)
    expected = sum(dy @ layer.weight for dy, layer in zip(operands.dy, layers, strict=True))
    torch.testing.assert_close(dx, expected)


def test_every_layer_has_an_output_gradient_of_its_own() -> None:
    (operands,) = draw_operands(case(widths=(16, 16)), 1, CPU)
    first, second = operands.dy
    assert first.shape == second.shape == (1, 6, 16)
    assert not torch.equal(first, second)


def test_results_say_what_they_are_of(record: dict[str, Any]) -> None:
    text = "32→16+8+8, T 6, r 8, k 2, fp32"
    assert {case_text(t["case"]) for t in record["timings"]} == {text}
    assert conditions(record)
    (table,) = tables(record)
    assert table.startswith(f"**{text}**")
    assert "| **gralora, computed together** |" in table
    assert {group for panel in panels(record) for group in panel.groups} == {
        "32→16+8+8\nT 6\nr 8, k 2"
    }


def test_result_can_be_shown(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shared.json"
    path.write_text(json.dumps(record))
    assert run.main(["show", str(path)]) == 0
    assert "32→16+8+8, T 6, r 8, k 2, fp32: eager" in capsys.readouterr().out


def test_operations_are_those_of_every_layer() -> None:
    variant = Variant("gralora", [], [()], 8)
    parts = [_flop(layer, variant, "step") for layer in case().layers]
    assert _flop(case(), variant, "step") == sum(parts)


def test_least_traffic_reads_the_input_once() -> None:
    x, weights, results = 6 * 32, 32 * 32, 6 * 32
    frozen = Variant("base", [], [()], 0)
    assert _least_bytes(case(), frozen, "forward") == 4 * (x + weights + results)


def test_layers_by_themselves() -> None:
    assert case().layers == tuple(Case(32, width, 6, 8, 2, "fp32") for width in (16, 8, 8))


def test_plain_layers_beside_layers_of_one_input(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    options = ["--base", "plain,shared", "--shapes", "64x32", "--variants", "base,gralora_shared"]
    assert run.main([*SMALL, *options, "--rk", "8:2", "--rounds", "9", "--json", str(path)]) == 0
    found = [(t["case"]["base"], t["variant"]) for t in json.loads(path.read_text())["timings"]]
    assert found == [("plain", "base")] * 2 + [
        ("shared", name) for _ in range(2) for name in ("base", "gralora_shared")
    ]


@pytest.mark.parametrize(
    "text", ["32x16", "32x16+8+8+8", "32x16+", "32x0+8", "32+16", "a", ""]
)  # fmt: skip
def test_other_forms_of_groups_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="groups: in_features x the out_features of two or three"):
        parse_groups(text)


def test_forms_of_groups() -> None:
    assert parse_groups("32x16+8+8,8x4+4") == [(32, (16, 8, 8)), (8, (4, 4))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "32x18+6", "--rk", "8:4"], "k must divide both features, got 32x18, k=4"),
        (["--groups", "32"], "groups: in_features x the out_features of two or three layers"),
        (["--memory"], "memory: it is measured over plain layers alone, got shared"),
        (
            ["--base", "plain", "--variants", "gralora_shared"],
            "gralora_sm90, got gralora_shared",
        ),
    ],
    ids=["grid", "form", "memory", "variants"],
)
def test_wrong_option_is_explained(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal([*SMALL, *arguments])
