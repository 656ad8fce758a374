"""Forward passes that keep no latents: the backward pass makes them again from x."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from gralora import _C
from gralora.functional import gralora_add, gralora_linear, gralora_linear_group
from gralora.kernels import recomputed_latents

T, K, WIDTH, S, R0 = 21, 2, 16, 3, 5
N = M = K * WIDTH
Named = dict[str, Tensor]


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _operands() -> Named:
    torch.manual_seed(3)
    operands = {
        "x": _draw(T, N),
        "A": _draw(K, WIDTH, K * S),
        "B": _draw(K, K * S, WIDTH),
        "lora_A": _draw(R0, N),
        "lora_B": _draw(M, R0),
    }
    return {name: tensor.requires_grad_() for name, tensor in operands.items()}


WEIGHT, BIAS = _draw(M, N), _draw(M)


def _linear(o: Named) -> list[Tensor]:
    return [gralora_linear(o["x"], WEIGHT, BIAS, o["A"], o["B"], scaling=0.5)]


def _hybrid(o: Named) -> list[Tensor]:
    plain = {"lora_A": o["lora_A"], "lora_B": o["lora_B"]}
    return [gralora_linear(o["x"], WEIGHT, BIAS, o["A"], o["B"], scaling=0.5, **plain)]


def _lora(o: Named) -> list[Tensor]:
    plain = {"lora_A": o["lora_A"], "lora_B": o["lora_B"]}
    return [gralora_linear(o["x"], WEIGHT, None, None, None, scaling=0.5, **plain)]


def _dropped(o: Named) -> list[Tensor]:
    torch.manual_seed(7)
    return [gralora_linear(o["x"], WEIGHT, None, o["A"], o["B"], scaling=0.5, dropout_p=0.4)]


def _add(o: Named) -> list[Tensor]:
    return [gralora_add(o["x"] @ WEIGHT.t(), o["x"], o["A"], o["B"], scaling=0.5)]


def _group(o: Named) -> list[Tensor]:
    layers = [(WEIGHT, o["A"], o["B"]), (2 * WEIGHT, 2 * o["A"], 3 * o["B"])]
    weights, A, B = map(list, zip(*layers, strict=True))
    return list(gralora_linear_group(o["x"], weights, [None, None], A, B, scaling=0.5))


def _half_a_group(o: Named) -> list[Tensor]:
    return _group(o)[1:]


CALLS = [_linear, _hybrid, _lora, _dropped, _add, _group, _half_a_group]


def _gradients(call: Callable[[Named], list[Tensor]], operands: Named) -> dict[str, Tensor | None]:
    outputs = call(operands)
    dy = [torch.ones_like(y) * (i + 1) for i, y in enumerate(outputs)]
    found = torch.autograd.grad(outputs, list(operands.values()), dy, allow_unused=True)
    return dict(zip(operands, found, strict=True))


@contextmanager
def _counting_saved() -> Iterator[list[tuple[int, ...]]]:
    shapes: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield shapes


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.strip("_"))
def test_the_gradients_are_the_same(call: Callable[[Named], list[Tensor]]) -> None:
    operands = _operands()
    expected = _gradients(call, operands)
    with recomputed_latents():
        actual = _gradients(call, operands)
    assert [name for name, gradient in expected.items() if gradient is not None]
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-12, atol=1e-12)


def test_no_latent_is_saved() -> None:
    latent = (K, T, K * S)
    with _counting_saved() as kept:
        _hybrid(_operands())
    with recomputed_latents(), _counting_saved() as left:
        _hybrid(_operands())
    assert {latent, (T, R0)} <= set(kept)
    assert not {latent, (T, R0)} & set(left)


def test_x_is_saved_where_b_alone_is_trained() -> None:
    operands = _operands()
    operands["A"].requires_grad_(False)
    expected = _gradients_of_b(operands)
    with recomputed_latents():
        torch.testing.assert_close(_gradients_of_b(operands), expected)


def _gradients_of_b(operands: Named) -> Tensor:
    (gradient,) = torch.autograd.grad(_linear(operands)[0].square().sum(), operands["B"])
    return gradient


def test_the_backward_pass_may_run_outside() -> None:
    operands = _operands()
    expected = _gradients_of_b(operands)
    with recomputed_latents():
        loss = _linear(operands)[0].square().sum()
    torch.testing.assert_close(torch.autograd.grad(loss, operands["B"])[0], expected)


def test_blocks_nest() -> None:
    with recomputed_latents():
        with recomputed_latents(enabled=False):
            assert _C.saves_latents()
        assert not _C.saves_latents()
    assert _C.saves_latents()


def _fail() -> None:
    with recomputed_latents():
        raise KeyError


def test_an_error_ends_a_block() -> None:
    with pytest.raises(KeyError):
        _fail()
    assert _C.saves_latents()


def test_compiled_it_gives_the_same() -> None:
    operands = _operands()
    expected = _gradients(_linear, operands)
    with recomputed_latents():
        compiled = torch.compile(_linear, backend="aot_eager", fullgraph=True)
        actual = _gradients(compiled, operands)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient)


def test_without_x_the_operator_says_that_it_is_needed() -> None:
    o = _operands()
    mask = [False, False, False, False, True, False, False]
    with pytest.raises(RuntimeError, match="x is needed for a gradient that output_mask asks for"):
        torch.ops.gralora.linear_backward(
            _draw(T, M), None, WEIGHT, o["A"], o["B"], None, None, None, None, None,
            scaling=0.5, dropout_p=0.0, output_mask=mask,
        )  # fmt: skip


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("T", [16, 300, 2048])
def test_on_a_gpu_they_are_the_same_up_to_rounding(T: int, cuda: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(T, 512, device=cuda, dtype=torch.bfloat16)
    weight = torch.randn(512, 512, device=cuda, dtype=torch.bfloat16)
    A = torch.randn(2, 256, 16, device=cuda, requires_grad=True)
    B = torch.randn(2, 16, 256, device=cuda, requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        y = gralora_linear(x, weight, None, A, B, scaling=0.1)
        return torch.autograd.grad(y, (A, B), torch.ones_like(y))

    expected = step()
    with recomputed_latents():
        actual = step()
    for found, wanted in zip(actual, expected, strict=True):
        assert (found - wanted).norm() <= 1e-2 * wanted.norm()
