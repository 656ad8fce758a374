"""The steps by themselves compute what their names say, and are counted right."""

import pytest
import torch
from torch import Tensor

from gralora.bench.case import SCALING, Case
from gralora.bench.kernel_operations import DRAWS, Operands, operations

CASE = Case(in_features=24, out_features=40, tokens=7, rank=12, grid=4, dtype="fp64")
STEPS = torch.ops.gralora_steps


def _operands() -> Operands:
    return Operands(CASE, torch.device("cpu"))


def test_project_sums_over_each_block(device: torch.device) -> None:
    operands = Operands(CASE, device)
    x, A, latent = operands.rows(24), operands.input_factor(), operands.latent()
    STEPS.project(latent, x, A, scaling=SCALING)
    expected = SCALING * torch.einsum(
        "tjc,jciq->itjq", x.view(7, 4, 6), A.view(4, 6, 4, 3)
    ).reshape(4, 7, 12)
    torch.testing.assert_close(latent, expected)


def test_expand_overwrites_each_block(device: torch.device) -> None:
    operands = Operands(CASE, device)
    rows, latent, B = operands.rows(40), operands.latent(), operands.output_factor()
    STEPS.expand(rows, latent, B, overwrite=True)
    torch.testing.assert_close(rows, torch.einsum("itq,iqo->tio", latent, B).reshape(7, 40))


def test_expand_accumulates(device: torch.device) -> None:
    operands = Operands(CASE, device)
    rows, latent, B = operands.rows(40), operands.latent(), operands.output_factor()
    before = rows.clone()
    STEPS.expand(rows, latent, B, overwrite=False)
    expected = before + torch.einsum("itq,iqo->tio", latent, B).reshape(7, 40)
    torch.testing.assert_close(rows, expected)


def test_sums_over_tokens_come_in_the_order_asked_for(device: torch.device) -> None:
    activations = [torch.randn(2, 9, 5, device=device), torch.randn(3, 9, 8, device=device)]
    latents = [torch.randn(2, 9, 6, device=device), torch.randn(3, 9, 4, device=device)]
    sums = STEPS.sum_over_tokens(activations, latents, [False, True], dtype=torch.float32)
    expected = (
        torch.einsum("ktp,ktq->kpq", activations[0], latents[0]),
        torch.einsum("ktp,ktq->kpq", latents[1], activations[1]),
    )
    for found, sum_ in zip(sums, expected, strict=True):
        torch.testing.assert_close(found, sum_)


def test_round_takes_several_tensors(device: torch.device) -> None:
    tensors = [torch.randn(3, 5, device=device), torch.randn(7, device=device)]
    rounded = STEPS.round(tensors, dtype=torch.bfloat16)
    assert [tensor.dtype for tensor in rounded] == [torch.bfloat16] * 2
    assert all(torch.equal(r, t.bfloat16()) for r, t in zip(rounded, tensors, strict=True))


def test_exchange_brings_blocks_in_order(device: torch.device) -> None:
    product = torch.randn(2, 5, 12, dtype=torch.float64, device=device)
    latent = torch.empty(4, 5, 8, dtype=torch.float64, device=device).narrow(2, 0, 6)
    STEPS.exchange(latent, product)
    for i in range(4):
        for j in range(2):
            expected = product[j, :, 3 * i : 3 * i + 3]
            assert torch.equal(latent[i, :, 3 * j : 3 * j + 3], expected)


def _wrong_calls() -> dict[str, tuple[object, str]]:
    rows, latent = torch.empty(7, 24), torch.empty(4, 7, 12)
    factor = torch.empty(4, 6, 12)
    return {
        "rows": (
            lambda: STEPS.project(latent, rows[:5], factor, scaling=1.0),
            "project: latent must have shape",
        ),
        "dtype": (
            lambda: STEPS.project(latent, rows.double(), factor, scaling=1.0),
            "project: rows must be Float on cpu, got Double",
        ),
        "layout": (
            lambda: STEPS.project(latent.mT.contiguous().mT, rows, factor,
                                  scaling=1.0),
            "project: latent must have strides",
        ),
        "expand": (
            lambda: STEPS.expand(rows, latent, factor, overwrite=True),
            "expand: factor must have shape",
        ),
        "pairs": (
            lambda: STEPS.sum_over_tokens([latent], [], [], dtype=torch.float32),
            "sum_over_tokens: each activation has a latent and an order, got 1 activations, 0",
        ),
        "count": (
            lambda: STEPS.round([rows] * 5, dtype=torch.bfloat16),
            "round: takes 1 to 4 tensors, got 5",
        ),
        "same dtype": (
            lambda: STEPS.round([rows], dtype=torch.float32),
            "round: tensors must have another dtype than the result, got Float",
        ),
        "product": (
            lambda: STEPS.exchange(latent, torch.empty(4, 7, 13)),
            "exchange: product must have shape",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_wrong_calls()))
def test_wrong_operands_of_a_step_are_named(name: str) -> None:
    call, message = _wrong_calls()[name]
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize("name", DRAWS)
def test_every_step_runs(name: str) -> None:
    torch.manual_seed(0)
    for operation in operations(CASE, torch.device("cpu"), [name]):
        for call in operation.calls:
            call()


def test_each_call_has_operands_of_its_own() -> None:
    (operation,) = operations(CASE, torch.device("cpu"), ["project H"])
    first, second = (call.args[1] for call in operation.calls)
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize(
    ("name", "elements", "flop"),
    [
        ("project H", 7 * 24 + 24 * 12 + 4 * 7 * 12, 2 * 7 * 24 * 12),
        ("expand y", 7 * 40 + 12 * 40 + 4 * 7 * 12, 2 * 7 * 40 * 12),
        (
            "weight gradient",
            7 * (24 + 40) + 2 * 4 * 7 * 12 + 12 * (24 + 40),
            2 * 7 * (24 + 40) * 12,
        ),
        ("exchange", 2 * 4 * 7 * 12, 0),
        ("merge", 2 * 24 * 40 + 12 * (24 + 40), 2 * 24 * 40 * 3),
        ("dropout", 2 * 7 * 24, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bytes_and_products_are_counted_once(name: str, elements: int, flop: int) -> None:
    (operation,) = operations(CASE, torch.device("cpu"), [name])
    assert (operation.bytes_moved, operation.flop) == (8 * elements, flop)


def test_rounding_reads_fp32_and_writes_16_bits() -> None:
    (operation,) = operations(CASE, torch.device("cpu"), ["round"])
    assert operation.bytes_moved == (4 + 2) * 12 * (24 + 40)


def test_latents_are_padded_to_eight_elements() -> None:
    latent: Tensor = _operands().latent()
    assert (latent.shape, latent.stride()) == ((4, 7, 12), (7 * 16, 16, 1))
