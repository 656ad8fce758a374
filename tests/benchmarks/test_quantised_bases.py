"""The layer suite over layers that bitsandbytes and torchao quantised, on the CPU."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run
import torch
from doc_tables import conditions
from torch import nn

from gralora.bench import bases, layer
from gralora.bench.agreement import relative_errors
from gralora.bench.bases import BASES, has_input_gradient, libraries, make_ring
from gralora.bench.case import Case, Factors, UnavailableError, Variant
from gralora.bench.layer_records import Recorder
from gralora.bench.plot_panels import panels
from gralora.bench.variants import BUILDERS

CPU = torch.device("cpu")
SMALL = ["layer", "--device", "cpu", "--shapes", "128x64", "--tokens", "4", "--rk", "8:2"]
LIBRARIES = {
    "bnb-int8": "bitsandbytes",
    "bnb-nf4": "bitsandbytes",
    "torchao-int8": "torchao.quantization",
}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=LIBRARIES)
def base(request: pytest.FixtureRequest) -> str:
    """A kind of base that runs on the CPU, where its library is installed."""
    pytest.importorskip(LIBRARIES[request.param])
    name: str = request.param
    return name


def case_over(base: str, **changes: object) -> Case:
    values = {"in_features": 128, "out_features": 64, "tokens": 4, "rank": 8, "grid": 2}
    return Case(**{**values, "dtype": "fp32", "base": base, **changes})


def settings(*variants: str) -> layer.Settings:
    return layer.Settings(CPU, variants, ["eager"], rounds=9, memory=False)


def record_of(case: Case, *variants: str) -> dict[str, Any]:
    recorder = Recorder(lambda label, done, total: None)
    layer.run_case(case, settings(*variants), recorder)
    return recorder.as_dict()


def test_weight_is_quantised(base: str) -> None:
    (linear,) = make_ring(case_over(base), CPU).linears
    codes = getattr(linear.weight, "qdata", linear.weight)
    assert codes.dtype == (torch.uint8 if base == "bnb-nf4" else torch.int8)
    assert not linear.weight.requires_grad


def test_every_variant_agrees_and_is_timed(base: str) -> None:
    pytest.importorskip("peft")
    names = ["base", "peft_lora", "peft_gralora", "peft_accelerated", "gralora"]
    record = record_of(case_over(base), *names)
    assert record["skipped"] == []
    assert {(t["variant"], t["pass"]) for t in record["timings"]} == {
        (name, pass_name) for name in names for pass_name in ("forward", "step")
    }
    errors = {entry["variant"]: entry["errors"] for entry in record["agreement"]}
    assert errors.keys() == {"base", "peft_gralora", "peft_accelerated", "gralora"}
    assert 0 < errors.pop("base")["y"] < BASES[base].most_error
    for found in errors.values():
        assert found.keys() == {"y", "dx", "dA", "dB"}
        assert max(found.values()) < 1e-5


def test_ratio_is_over_the_quantised_layer(base: str) -> None:
    record = record_of(case_over(base), "base", "gralora")
    own, other = (t for t in record["timings"] if t["pass"] == "step")
    assert own["variant"] == "base"
    found = other["ratio"]["base"]["of_minima"]
    assert found == min(other["samples"]) / min(own["samples"])


def test_agreement_sees_a_wrong_scale_over_a_quantised_layer(base: str) -> None:
    case = case_over(base)
    linears = make_ring(case, CPU).linears
    right = BUILDERS["gralora"](case, linears, Factors.draw(case, CPU))
    wrong = Variant(
        "wrong",
        [lambda x: 2 * right.modules[0](x) - linears[0](x)],
        right.parameters,
        case.rank,
        is_gralora=True,
    )
    assert min(relative_errors(case, wrong, linears[0]).values()) > 0.02


HELD_IN = {
    "peft_lora": torch.bfloat16,
    "peft_gralora": torch.bfloat16,
    "peft_gralora_fp32": torch.float32,
    "gralora": torch.bfloat16,
    "gralora_fp32": torch.float32,
}


@pytest.mark.parametrize(("name", "expected"), HELD_IN.items(), ids=HELD_IN)
def test_adapters_have_the_dtype_that_the_variant_says(
    base: str, name: str, expected: torch.dtype
) -> None:
    if name.startswith("peft"):
        pytest.importorskip("peft")
    case = case_over(base, dtype="bf16")
    built = BUILDERS[name](case, make_ring(case, CPU).linears, Factors.draw(case, CPU))
    assert {parameter.dtype for parameter in built.parameters[0]} == {expected}


def test_lora_of_peft_is_that_for_the_library(base: str) -> None:
    pytest.importorskip("peft")
    case = case_over(base)
    built = BUILDERS["peft_lora"](case, make_ring(case, CPU).linears, Factors.draw(case, CPU))
    library = "torchao" if base == "torchao-int8" else "bnb"
    assert type(built.modules[0]).__module__ == f"peft.tuners.lora.{library}"


@pytest.mark.parametrize("name", ["cublas", "gralora_functional"])
def test_variant_that_reads_the_weight_is_skipped(base: str, name: str) -> None:
    record = record_of(case_over(base), "base", name)
    (skipped,) = record["skipped"]
    assert skipped["variant"] == name
    assert skipped["reason"] == "takes a plain weight, and the layer's is quantised"


def test_peer_that_fails_over_a_quantised_layer_is_skipped(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Variant:
        raise TypeError("no such layer\nsecond line")

    monkeypatch.setitem(BUILDERS, "gralora", failing)
    (skipped,) = record_of(case_over(base), "base", "gralora")["skipped"]
    assert (skipped["variant"], skipped["reason"]) == ("gralora", f"over {base}: no such layer")


def test_fault_over_a_plain_layer_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Variant:
        raise TypeError("a fault")

    monkeypatch.setitem(BUILDERS, "gralora", failing)
    with pytest.raises(TypeError, match="a fault"):
        record_of(case_over("plain"), "gralora")


def test_quantised_layer_far_from_the_plain_one_is_refused(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASES, base, dataclasses.replace(BASES[base], most_error=1e-4))
    record = record_of(case_over(base), "base")
    assert record["timings"] == []
    assert "wrong result of the quantised layer" in record["skipped"][0]["reason"]


def test_base_that_has_no_gradient_has_no_step(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_gradient(linear: nn.Linear, case: Case) -> nn.Linear:
        made = quantise(linear, case)
        made.register_forward_hook(lambda module, args, y: y.detach())
        return made

    quantise = BASES[base].quantise
    monkeypatch.setitem(BASES, base, dataclasses.replace(BASES[base], quantise=without_gradient))
    case = case_over(base)
    assert not has_input_gradient(case, make_ring(case, CPU).linears[0])
    record = record_of(case, "base", "gralora")
    assert {timing["pass"] for timing in record["timings"]} == {"forward"}
    assert record["agreement"][-1]["errors"].keys() == {"y", "dA", "dB"}
    assert record["skipped"][0]["reason"] == "the base has no gradient for its input"


@pytest.mark.parametrize("name", LIBRARIES)
def test_missing_library_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = LIBRARIES[name].partition(".")[0]
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    (skipped,) = record_of(case_over(name), "base")["skipped"]
    assert skipped["variant"] == name
    assert skipped["reason"].startswith(f"{package} cannot be imported: ")
    assert skipped["reason"].endswith(f"(pip install {package})")


def test_int4_of_torchao_is_skipped_on_a_cpu() -> None:
    pytest.importorskip("torchao.quantization")
    record = record_of(case_over("torchao-int4", dtype="bf16"), "base")
    assert record["timings"] == []
    assert record["skipped"][0]["reason"] == "torchao's int4 runs on a GPU only"


def test_layer_that_torchao_passes_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    monkeypatch.setattr(quantization, "quantize_", lambda *_: None)
    with pytest.raises(UnavailableError, match="torchao did not quantise a layer of 128 in-feat"):
        make_ring(case_over("torchao-int8"), CPU)


def test_graphs_are_skipped_where_the_base_cannot_be_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = dataclasses.replace(BASES["plain"], no_graph="it waits")
    monkeypatch.setitem(bases.BASES, "plain", base)
    recorder = Recorder(lambda label, done, total: None)
    graphs = dataclasses.replace(settings("base"), modes=["graph", "eager"])
    layer.run_case(case_over("plain"), graphs, recorder)
    assert {timing["mode"] for timing in recorder.timings} == {"eager"}
    assert recorder.skipped[0]["reason"] == "it waits"


def test_several_bases_are_measured_one_after_the_other(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    path = tmp_path / "layer.json"
    options = ["--base", "plain,bnb-nf4", "--variants", "base", "--rounds", "9"]
    assert run.main([*SMALL, *options, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    found = [timing["case"]["base"] for timing in record["timings"]]
    assert found == ["plain", "plain", "bnb-nf4", "bnb-nf4"]
    assert f"bitsandbytes {record['environment']['packages']['bitsandbytes']}" in conditions(record)
    groups = [group for panel in panels(record) for group in panel.groups]
    assert [group.endswith("\nover bnb-nf4") for group in groups] == [False, True] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--base", "plain,int8"],
            "base: any of plain,bnb-int8,bnb-nf4,torchao-int8,torchao-int4,moe,shared, got int8",
        ),
        (
            ["--base", "bnb-nf4", "--memory"],
            "memory: it is measured over plain layers alone, got bnb-nf4",
        ),
    ],
    ids=["unknown", "memory"],
)
def test_wrong_base_is_explained(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal([*SMALL, *arguments])


def test_libraries_are_those_of_the_bases() -> None:
    names = "plain,bnb-int8,torchao-int8,bnb-nf4"
    assert libraries({"base": names}) == ["bitsandbytes", "torchao"]
    assert libraries({}) == []


def test_memory_of_a_quantised_weight_is_its_codes_and_statistics() -> None:
    case = case_over("plain", in_features=256, dtype="bf16")
    sizes = {name: base.weight_bytes(case) for name, base in BASES.items()}
    elements = 256 * 64
    assert sizes["plain"] == 2 * elements
    assert sizes["bnb-int8"] == sizes["torchao-int8"] == elements
    # A byte for each 64 elements, and a float for each 256 of those.
    assert sizes["bnb-nf4"] == pytest.approx(elements / 2 + elements / 64, rel=0.005)
    # Scale and zero in bf16 for each 128.
    assert sizes["torchao-int4"] == elements / 2 + elements / 128 * 4
