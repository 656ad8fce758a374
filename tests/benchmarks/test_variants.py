"""The library composition is right, and a wrong variant is caught before it is timed."""

import pytest
import torch
from torch import nn

from gralora.bench.agreement import relative_errors
from gralora.bench.baselines import library_gralora
from gralora.bench.case import SCALING, Case, Factors, UnavailableError, Variant
from gralora.bench.variants import BUILDERS

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


@pytest.mark.parametrize("grid", [1, 2, 4], ids="k={}".format)
def test_library_composition_is_exact(grid: int) -> None:
    case = _case(grid=grid)
    variant, linear = _build("cublas", case)
    assert max(relative_errors(case, variant, linear).values()) < 1e-14


@pytest.mark.parametrize("name", ["peft_gralora", "peft_accelerated", "gralora"])
def test_layer_agrees_with_a_dense_one(name: str) -> None:
    case = _case(dtype="fp32")
    try:
        variant, linear = _build(name, case)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert max(relative_errors(case, variant, linear).values()) < 1e-5


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
