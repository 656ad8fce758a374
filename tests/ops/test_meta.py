"""Meta and fake tensors: what they promise is what a real run gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_calls import OPERATORS, Call, call_of
from ops_cases import GRIDS, LINEAR, Grid, Operands, make_operands
from ops_layouts import padded, transposed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

CASES = {
    "grid": lambda: make_operands(GRIDS["wide"], (2, 3)),
    "hybrid": lambda: make_operands(GRIDS["hybrid"], (5,), bias=False),
    "plain_pair": lambda: make_operands(GRIDS["plain_pair_alone"]),
    "rank_of_eight": lambda: make_operands(Grid(k_in=2, k_out=3, n=4, m=4, s=4, r0=8), (5,)),
    "one_token": lambda: make_operands(GRIDS["hybrid"], ()),
    "zero_tokens": lambda: make_operands(GRIDS["hybrid"], (2, 0)),
    "bf16_x_fp32_factors": lambda: make_operands(
        GRIDS["hybrid"], dtype=torch.bfloat16, factor_dtype=torch.float32
    ),
    "fp32_x_bf16_factors": lambda: make_operands(
        GRIDS["hybrid"], dtype=torch.float32, factor_dtype=torch.bfloat16
    ),
    "transposed": lambda: make_operands(GRIDS["hybrid"], (2, 3)).map(
        transposed, [*LINEAR, "y", "dy"]
    ),
    "padded": lambda: make_operands(GRIDS["hybrid"], (2, 3)).map(padded, [*LINEAR, "y", "dy"]),
}
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
operators = pytest.mark.parametrize("operator", OPERATORS)
dropouts = pytest.mark.parametrize("p", [0.0, 0.3], ids=["no_dropout", "dropout"])


def _description(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.stride(), t.dtype, t.storage_offset()) for t in tensors]


def _on(call: Call, convert: Any) -> Call:
    args = tuple(convert(value) if isinstance(value, Tensor) else value for value in call.args)
    return Call(call.name, args, call.kwargs)


@cases
@operators
@dropouts
def test_fake_tensors_have_the_layout_of_the_real_run(operator: str, p: float, make: Any) -> None:
    call = call_of(operator, make(), dropout_p=p)
    with FakeTensorMode() as mode:
        fake = _on(call, mode.from_tensor).outputs()
    assert _description(fake) == _description(call.outputs())


@cases
@operators
def test_meta_tensors_have_the_layout_of_the_real_run(operator: str, make: Any) -> None:
    call = call_of(operator, make())
    meta = _on(call, lambda t: t.to("meta", copy=True)).outputs()
    assert all(value.device.type == "meta" for value in meta)
    shapes = [(tuple(t.shape), t.dtype) for t in call.outputs()]
    assert [(tuple(t.shape), t.dtype) for t in meta] == shapes


@cases
def test_merge_of_meta_tensors_does_nothing_and_passes(make: Any) -> None:
    _on(call_of("merge_", make()), lambda t: t.to("meta"))()


@pytest.mark.parametrize(
    ("s", "pitch"), [(1, 8), (4, 8), (5, 16), (8, 16), (9, 24)], ids=lambda value: str(value)
)
def test_h_has_a_row_pitch_of_whole_eights(s: int, pitch: int, device: torch.device) -> None:
    T, k_in, k_out = 5, 2, 3
    operands = make_operands(Grid(k_in=k_in, k_out=k_out, n=4, m=4, s=s), (T,), device=device)
    _, H, _ = call_of("linear_forward", operands)()
    assert H.shape == (k_out, T, k_in * s)
    assert H.stride() == (T * pitch, pitch, 1)


@pytest.mark.parametrize(("r0", "pitch"), [(1, 8), (8, 8), (9, 16)], ids=lambda value: str(value))
def test_lora_h_has_a_row_pitch_of_whole_eights(r0: int, pitch: int, device: torch.device) -> None:
    operands = make_operands(Grid(n=4, m=4, r0=r0), (5,), device=device)
    _, _, lora_H = call_of("linear_forward", operands)()
    assert lora_H.shape == (5, r0)
    assert lora_H.stride() == (pitch, 1)


@pytest.mark.parametrize("operator", ["linear_forward", "add_forward"])
def test_h_is_scaling_times_the_projection(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], (5,), device=device)
    grid = GRIDS["hybrid_rectangular"]
    _, H, lora_H = call_of(operator, operands)()
    assert operands.A is not None
    assert operands.lora_A is not None
    for i in range(grid.k_out):
        for j in range(grid.k_in):
            block = operands.x[:, j * grid.n : (j + 1) * grid.n]
            factor = operands.A[j, :, i * grid.s : (i + 1) * grid.s]
            columns = slice(j * grid.s, (j + 1) * grid.s)
            torch.testing.assert_close(H[i, :, columns], operands.scaling * (block @ factor))
    torch.testing.assert_close(lora_H, operands.scaling * (operands.x @ operands.lora_A.T))


@pytest.mark.parametrize("operator", ["linear_forward", "add_forward"])
def test_an_absent_part_has_an_empty_h(operator: str, device: torch.device) -> None:
    _, H, _ = call_of(operator, make_operands(GRIDS["plain_pair_alone"], device=device))()
    _, _, lora_H = call_of(operator, make_operands(GRIDS["wide"], device=device))()
    assert H.shape == (0,)
    assert lora_H.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_h_has_the_dtype_of_x(dtype: torch.dtype, device: torch.device) -> None:
    operands = make_operands(
        GRIDS["hybrid"], dtype=dtype, factor_dtype=torch.float64, device=device
    )
    _, H, lora_H = call_of("linear_forward", operands)()
    assert H.dtype == dtype
    assert lora_H.dtype == dtype


def _with_symbolic_tokens(call: Call, tokens: int) -> tuple[list[Tensor], ShapeEnv]:
    """Runs `call` on fake tensors whose token axes share one symbol."""
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)

    def convert(value: Tensor) -> Tensor:
        sizes = [DimDynamic.DUCK if size == tokens else DimDynamic.STATIC for size in value.shape]
        return mode.from_tensor(
            value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)
        )

    with mode:
        return _on(call, convert).outputs(), environment


@operators
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_a_symbolic_number_of_tokens_stays_symbolic(operator: str, grid: str) -> None:
    tokens = 37  # No other size or stride of these operands.
    operands = make_operands(GRIDS[grid], (tokens,))
    outputs, environment = _with_symbolic_tokens(call_of(operator, operands), tokens)
    values = [size for output in outputs for size in output.shape]
    assert tokens not in [size for size in values if isinstance(size, int)]
    # No guard may tie the symbol to a number.
    assert not [guard for guard in environment.guards if guard.expr.is_Equality], environment.guards


@pytest.mark.parametrize("operator", ["linear_forward", "add_forward"])
def test_a_symbolic_trace_runs_at_other_token_counts(operator: str) -> None:
    grid = GRIDS["hybrid"]

    def flat(*tensors: Tensor) -> list[Tensor]:
        replaced = iter(tensors)
        call = call_of(operator, make_operands(grid, (1,)))
        return _on(call, lambda _: next(replaced)).outputs()

    def tensors(tokens: int) -> list[Tensor]:
        return call_of(operator, make_operands(grid, (tokens,))).inputs()

    graph = make_fx(flat, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*tensors(19))
    for tokens in (2, 3, 23):
        given = tensors(tokens)
        for traced, eager in zip(graph(*given), flat(*given), strict=True):
            assert torch.equal(traced, eager)


def test_meta_operands_give_a_meta_gradient() -> None:
    operands = make_operands(GRIDS["hybrid"])
    meta: Operands = operands.map(lambda t: t.to("meta").requires_grad_(), [*LINEAR])
    meta.linear().sum().backward()
    assert meta.A is not None
    assert meta.A.grad is not None
    assert meta.A.grad.shape == meta.A.shape
    assert meta.A.grad.device.type == "meta"
