"""How many kernels of the product a pass starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops_cases import Grid, make_operands
from ops_paths import runs_sm90
from torch.profiler import ProfilerActivity, profile

import gralora.kernels
from gralora import _C

GRID = Grid(k_in=4, k_out=4, n=256, m=256, s=16)
ROUNDING = {torch.bfloat16: 0, torch.float32: 1}


def _count(profiler: profile, name: str = "gralora::") -> int:
    """Launches of the product's own kernels; a base product of the library is none."""
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA and name in event.name
        for event in profiler.events() or ()
    )


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("factor_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["", "dropout"])
@pytest.mark.parametrize("T", [1, 16, 64])
def test_two_launches_forward_and_two_backward(
    T: int, dropout_p: float, factor_dtype: torch.dtype, cuda: torch.device
) -> None:
    operands = make_operands(
        GRID, (T,), dtype=torch.bfloat16, factor_dtype=factor_dtype, device=cuda, bias=False
    )

    def forward() -> torch.Tensor:
        return torch.ops.gralora.linear(
            operands.x, operands.weight, None, operands.A, operands.B, None, None,
            scaling=0.5, dropout_p=dropout_p,
        )  # fmt: skip

    for tensor in (operands.x, operands.A, operands.B):
        tensor.requires_grad_()
    forward().sum().backward()  # whatever happens once
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as forward_profile:
        y = forward()
        torch.cuda.synchronize()
    dy = torch.randn_like(y)
    with profile(activities=[ProfilerActivity.CUDA]) as backward_profile:
        y.backward(dy)
        torch.cuda.synchronize()
    # fp32 factors are rounded in each pass, their gradients by the kernels that sum them.
    expected = 2 + ROUNDING[factor_dtype]
    assert (_count(forward_profile), _count(backward_profile)) == (expected, expected)


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("r0", [0, 16], ids=["", "hybrid"])
def test_few_tokens_are_multiplied_by_the_weight_where_the_term_is_added(
    r0: int, cuda: torch.device
) -> None:
    for pass_profile in _profile_passes(replace(GRID, r0=r0), 16, cuda):
        assert _count(pass_profile, "::ThinProduct") == 1


@pytest.mark.cuda_kernels
def test_a_pass_that_projects_on_the_way_is_one_kernel_behind_its_counters(
    cuda: torch.device,
) -> None:
    """In the backward pass that kernel sums the factors' gradients too."""
    with gralora.kernels.forced("sm90"):
        assert _count_passes(GRID, 600, cuda) == (2, 2)


@pytest.mark.cuda_kernels
def test_where_latents_come_first_a_pass_is_two_kernels(cuda: torch.device) -> None:
    wide = Grid(k_in=4, k_out=4, n=1024, m=1024, s=16)
    processors = torch.cuda.get_device_properties(cuda).multi_processor_count
    chosen = _C.select_extended_product(
        T=512, depth=4096, width=1024, rank=64, blocks=4, processors=processors
    )
    if chosen["path"] != "kernel":
        pytest.skip("a GPU whose multiprocessors a library product fills better")
    assert _count_passes(wide, 512, cuda) == (2, 2)


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["", "dropout"])
@pytest.mark.parametrize("r0", [0, 16], ids=["", "hybrid"])
def test_the_base_products_take_along_what_is_dropped_and_a_plain_part(
    r0: int, dropout_p: float, cuda: torch.device
) -> None:
    if not runs_sm90():
        pytest.skip("no kernels of compute capability 9.0a run on this GPU")
    grid = replace(GRID, r0=r0)
    with gralora.kernels.forced("sm90"):
        forward, backward = _profile_passes(grid, 600, cuda, dropout_p=dropout_p)
    for pass_profile in (forward, backward):
        assert _count(pass_profile, "::ExtendedProduct") == 1
        assert _count(pass_profile, "::Expansion") == 0


def _count_passes(grid: Grid, T: int, cuda: torch.device) -> tuple[int, int]:
    """Launches of the product's kernels in a forward and a backward pass."""
    if not runs_sm90():
        pytest.skip("no kernels of compute capability 9.0a run on this GPU")
    forward, backward = _profile_passes(grid, T, cuda)
    return _count(forward), _count(backward)


def _profile_passes(
    grid: Grid, T: int, cuda: torch.device, dropout_p: float = 0.0
) -> tuple[profile, profile]:
    operands = make_operands(grid, (T,), dtype=torch.bfloat16, device=cuda, bias=True)
    factors = (operands.A, operands.B, operands.lora_A, operands.lora_B)
    leaves = [tensor for tensor in (operands.x, *factors) if tensor is not None]
    for tensor in leaves:
        tensor.requires_grad_()

    def forward() -> torch.Tensor:
        return torch.ops.gralora.linear(
            operands.x, operands.weight, operands.bias, *factors,
            scaling=0.5, dropout_p=dropout_p,
        )  # fmt: skip

    y = forward()
    dy = torch.randn_like(y)
    torch.autograd.grad(y, leaves, dy)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as forward_profile:
        y = forward()
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as backward_profile:
        torch.autograd.grad(y, leaves, dy)
        torch.cuda.synchronize()
    return forward_profile, backward_profile
