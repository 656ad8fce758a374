"""The library composition is right, and a wrong variant is caught before it is timed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gralora import _C
from gralora.bench.agreement import relative_errors
from gralora.bench.baselines import library_gralora
from gralora.bench.case import SCALING, Case, Factors, UnavailableError, Variant
from gralora.bench.layer import build_variants
from gralora.bench.layer_records import Recorder
from gralora.bench.variants import BUILDERS, HYBRID_RANK, ON_PATH, ON_REQUEST

CPU = torch.device("cpu")


def _case(**changes: object) -> Case:
    values = {
        "in_features": 24,
        "out_features": 40,
        "tokens": 5,
        "rank": 12,
        "grid": 4,
        "dtype": "fp64",
    }
    return Case(**{**values, **changes})


def _build(name: str, case: Case) -> tuple[Variant, nn.Linear]:
    torch.manual_seed(1)
    linear = nn.Linear(case.in_features, case.out_features, bias=False, dtype=case.torch_dtype)
    linear.requires_grad_(False)
    return BUILDERS[name](case, [linear], Factors.draw(case, CPU)), linear


def _build_or_skip(name: str, case: Case) -> tuple[Variant, nn.Linear]:
    try:
        return _build(name, case)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("grid", [1, 2, 4], ids="k={}".format)
def test_library_composition_is_exact(grid: int) -> None:
    case = _case(grid=grid)
    variant, linear = _build("cublas", case)
    assert max(relative_errors(case, variant, linear).values()) < 1e-14


@pytest.mark.parametrize("name", ["peft_gralora", "peft_accelerated", "gralora"])
def test_layer_agrees_with_a_dense_one(name: str) -> None:
    case = _case(dtype="fp32")
    variant, linear = _build_or_skip(name, case)
    assert max(relative_errors(case, variant, linear).values()) < 1e-5


@pytest.mark.parametrize("layer", ["peft_gralora", "gralora"])
def test_a_hybrid_agrees_in_its_plain_part_too(layer: str) -> None:
    case = _case(dtype="fp32")
    variant, linear = _build_or_skip(f"{layer}_hybrid", case)
    errors = relative_errors(case, variant, linear)
    assert set(errors) == {"y", "dx", "dA", "dB", "dlora_A", "dlora_B"}
    assert max(errors.values()) < 1e-5
    assert variant.extra_rank == case.rank + HYBRID_RANK


@pytest.mark.parametrize("layer", ["peft_gralora", "gralora"])
def test_a_layer_that_drops_is_checked_without_dropout_and_timed_with_it(layer: str) -> None:
    case = _case(dtype="fp32")
    variant, linear = _build_or_skip(f"{layer}_dropout", case)
    assert max(relative_errors(case, variant, linear).values()) < 1e-5
    x = torch.ones(50, case.in_features)
    assert not torch.equal(variant.modules[0](x), variant.modules[0](x))


def test_agreement_sees_a_wrong_scale() -> None:
    case = _case()
    variant, linear = _build("cublas", case)
    right = variant.modules[0]
    wrong = Variant(
        "wrong",
        [lambda x: 2 * right(x) - linear(x)],
        variant.parameters,
        case.rank,
        is_gralora=True,
    )
    errors = relative_errors(case, wrong, linear)
    assert min(errors.values()) > 0.02


def test_agreement_sees_exchanged_blocks() -> None:
    case = _case()
    variant, linear = _build("cublas", case)
    A, B = variant.parameters[0]
    wrong = Variant(
        "wrong",
        [lambda x: library_gralora(x, linear.weight, A, B.flip(0), SCALING)],
        [(A, B)],
        case.rank,
        is_gralora=True,
    )
    assert min(relative_errors(case, wrong, linear).values()) > 0.02


def test_fp32_adapters_need_a_16_bit_layer() -> None:
    with pytest.raises(UnavailableError, match="fp32"):
        _build("peft_gralora_fp32", _case(dtype="fp32"))


def test_a_forced_path_runs_on_a_gpu_alone_and_only_where_it_is_named() -> None:
    case = _case(dtype="fp32")
    _, linear = _build("base", case)
    recorder = Recorder(lambda label, done, total: None)
    (built,) = build_variants(case, [linear], ["base", *ON_PATH], recorder)
    assert built.name == "base"
    reasons = {entry["variant"]: entry["reason"] for entry in recorder.skipped}
    assert reasons == dict.fromkeys(ON_PATH, "a CPU has library calls alone")
    assert {"gralora_aten", "gralora_sm80", "gralora_sm90"} == ON_PATH < ON_REQUEST


def test_a_variant_holds_its_path_while_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def on_aten(case: Case, linears: list[nn.Linear], factors: Factors) -> Variant:
        def call(x: Tensor) -> Tensor:
            seen.append(_C.forced_path())
            return right(x)

        built = BUILDERS["cublas"](case, linears, factors)
        (right,) = built.modules
        return replace(built, name="gralora_aten", modules=[call], path="aten")

    monkeypatch.setitem(BUILDERS, "gralora_aten", on_aten)
    case = _case(dtype="fp32")
    _, linear = _build("base", case)
    recorder = Recorder(lambda label, done, total: None)
    (variant,) = build_variants(case, [linear], ["gralora_aten"], recorder)
    assert (seen, _C.forced_path()) == (["aten"], None)
    with variant.on_path():
        assert _C.forced_path() == "aten"
    assert _C.forced_path() is None


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", ["gralora_aten", "gralora_sm80"])
def test_layer_on_a_forced_path_agrees_with_a_dense_one(name: str) -> None:
    case = _case(in_features=64, out_features=64, rank=32, dtype="bf16")
    linear = nn.Linear(64, 64, bias=False, device="cuda", dtype=torch.bfloat16)
    recorder = Recorder(lambda label, done, total: None)
    (variant,) = build_variants(case, [linear.requires_grad_(False)], [name], recorder)
    assert variant.name == name
