"""The projection and rounding kernels: every tile, tails, layouts, and what they are chosen for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_paths import chip
from torch import Tensor

from gralora import _C, kernels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
layouts = pytest.mark.parametrize("transposed", [False, True], ids=["columns", "width"])

# T, k_in, n, k_out, s: both tiles, slices of columns, and tails on every axis.
SHAPES = {
    "one_token": (1, 2, 64, 2, 8),
    "few_tokens_long_width": (5, 2, 4096, 2, 16),
    "token_tail_16": (17, 2, 64, 2, 8),
    "width_shorter_than_a_step": (33, 2, 8, 2, 4),
    "width_tail": (70, 3, 136, 2, 8),
    "blocks_of_288": (127, 2, 288, 2, 8),
    "column_tail_24": (129, 2, 72, 3, 8),
    "odd_sub_rank": (65, 2, 80, 8, 3),
    "sub_rank_one": (64, 4, 40, 8, 1),
    "rectangular": (100, 4, 48, 2, 12),
    "slices_40": (300, 2, 96, 5, 8),
    "slices_120": (300, 2, 96, 5, 24),
    "one_input_block": (300, 1, 96, 4, 8),
    "large_tile": (9000, 2, 72, 2, 16),
    "large_tile_slices": (1000, 4, 136, 2, 32),
    "large_tile_odd_sub_rank": (9001, 2, 72, 8, 3),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
Shape = tuple[int, int, int, int, int]


def _operands(shape: Shape, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, Tensor]:
    """x [T, N] and A [k_in, n, k_out*s], the latter contiguous along its width if transposed."""
    T, k_in, n, k_out, s = shape
    x = torch.randn(T, k_in * n, device="cuda").to(dtype)
    A = (torch.randn(k_in, n, k_out * s, device="cuda") / n**0.5).to(dtype)
    return x, A.mT.contiguous().mT if transposed else A


def _project(x: Tensor, A: Tensor, k_out: int, scaling: float = 1.0) -> Tensor:
    """H [k_out, T, k_in*s], which the adapter alone leaves: no base product stands beside it."""
    rank = A.shape[0] * A.shape[2] // k_out
    B = torch.zeros(k_out, rank, 8, dtype=x.dtype, device=x.device)
    y = torch.zeros(x.shape[0], k_out * 8, dtype=x.dtype, device=x.device)
    forward = torch.ops.gralora.add_forward
    H: Tensor = forward(y, x, A, B, None, None, None, scaling=scaling, dropout_p=0.0)[1]
    return H


def _exact(x: Tensor, A: Tensor, k_out: int) -> tuple[Tensor, Tensor]:
    """H in fp64, and the sum of its terms' sizes, which bounds the error of an fp32 sum.

    Both are computed on the host, so that under a sanitizer no library's kernels run.
    """
    k_in, n, columns = A.shape
    blocks = x.cpu().double().view(-1, k_in, n)
    factor = A.cpu().double().view(k_in, n, k_out, columns // k_out)
    H = torch.einsum("tjc,jciq->itjq", blocks, factor)
    sizes = torch.einsum("tjc,jciq->itjq", blocks.abs(), factor.abs())
    return H.flatten(2).to(x.device), sizes.flatten(2).to(x.device)


def _takes_the_kernel(x: Tensor, A: Tensor, k_out: int) -> bool:
    """What the chooser says for the GPU that runs the test."""
    k_in, n, columns = A.shape
    choice = _C.select_project(
        T=x.shape[0],
        width=n,
        columns=columns,
        inner=k_in,
        outer=k_out,
        x_row_stride=x.stride(0),
        factor_transposed=A.stride(2) != 1,
        address=x.data_ptr(),
        **chip(),
    )
    return choice["path"] == "kernel"


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda", "poisoned_memory")
@shapes
@layouts
@dtypes
def test_latent_is_the_exact_one_rounded_once(
    dtype: torch.dtype, transposed: bool, shape: Shape
) -> None:
    x, A = _operands(shape, dtype, transposed)
    assert _takes_the_kernel(x, A, shape[3])
    H = _project(x, A, shape[3], scaling=0.75)
    exact, sizes = _exact(x, A, shape[3])
    half_a_place = torch.finfo(dtype).eps / 2
    bound = 0.75 * (half_a_place * exact.abs() + 1e-5 * sizes) + torch.finfo(dtype).smallest_normal
    assert ((H.double() - 0.75 * exact).abs() <= bound).all()


# What the products of libraries leave to the exchange: every width of word, and what BLAS pads. The
# first has more columns than the kernel of bulk copies takes, the others rows that no kernel reads.
EXCHANGED = {
    "16_bytes": (5000, 4, 48, 4, 72, torch.bfloat16),
    "8_bytes": (300, 2, 6, 3, 4, torch.float16),
    "4_bytes": (300, 3, 7, 2, 6, torch.bfloat16),
    "2_bytes": (1001, 2, 7, 3, 5, torch.bfloat16),
    "row_above_a_block": (3, 40, 9, 2, 77, torch.bfloat16),
    "fp32": (130, 2, 9, 3, 3, torch.float32),
    "fp64": (130, 2, 9, 3, 3, torch.float64),
    "one_output_block": (130, 4, 9, 1, 3, torch.bfloat16),
}


exchanged = pytest.mark.parametrize("case", EXCHANGED.values(), ids=EXCHANGED.keys())


# Small and large ones, with and without kernels of their own.
chips = pytest.mark.parametrize("processors", [20, 108, 132, 170])
capabilities = pytest.mark.parametrize("sm90", [False, True], ids=["sm80", "sm90"])


@exchanged
@chips
@capabilities
def test_cases_of_the_exchange_are_left_to_a_library_product(
    sm90: bool, processors: int, case: tuple[int, int, int, int, int, torch.dtype]
) -> None:
    T, k_in, n, k_out, s, dtype = case
    choice = _C.select_project(
        T=T,
        width=n,
        columns=k_out * s,
        inner=k_in,
        outer=k_out,
        half=dtype.itemsize == 2,
        processors=processors,
        sm90=sm90,
    )
    assert choice["path"] == "library"


@shapes
@layouts
@chips
@capabilities
def test_shapes_of_the_kernels_take_a_kernel(
    sm90: bool, processors: int, transposed: bool, shape: Shape
) -> None:
    T, k_in, n, k_out, s = shape
    choice = _C.select_project(
        T=T,
        width=n,
        columns=k_out * s,
        inner=k_in,
        outer=k_out,
        factor_transposed=transposed,
        processors=processors,
        sm90=sm90,
    )
    assert choice["path"] == "kernel"


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda", "poisoned_memory")
@exchanged
def test_latent_by_a_library_product(case: tuple[int, int, int, int, int, torch.dtype]) -> None:
    *shape, dtype = case
    x, A = _operands(tuple(shape), dtype, transposed=False)  # type: ignore[arg-type]
    assert dtype.itemsize > 2 or not _takes_the_kernel(x, A, shape[3])
    exact, sizes = _exact(x, A, shape[3])
    bound = torch.finfo(dtype).eps * exact.abs() + 1e-5 * sizes
    assert ((_project(x, A, shape[3]).double() - exact).abs() <= bound).all()


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda")
@shapes
def test_the_same_inputs_give_the_same_bits(shape: Shape) -> None:
    x, A = _operands(shape, torch.bfloat16, transposed=False)
    first = _project(x, A, shape[3])
    assert all(torch.equal(_project(x, A, shape[3]), first) for _ in range(5))


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda")
@layouts
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=["inf", "nan"])
def test_a_value_that_is_not_finite_stays_with_its_token_and_column(
    value: float, transposed: bool
) -> None:
    x, A = _operands((40, 2, 72, 2, 12), torch.bfloat16, transposed)
    x[39, 100] = value
    A[0, 71, 5] = value  # input block 0, output block 0
    H = _project(x, A, 2)
    expected = torch.zeros(2, 40, 24, dtype=torch.bool, device="cuda")
    expected[:, 39, 12:] = True
    expected[0, :, 5] = True
    assert torch.equal(~H.isfinite(), expected)


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda")
def test_rows_of_a_wider_tensor() -> None:
    x, A = _operands((50, 2, 64, 2, 8), torch.bfloat16, transposed=False)
    wide = torch.full((50, 256), float("nan"), dtype=torch.bfloat16, device="cuda")
    wide[:, 64:192] = x
    assert torch.equal(_project(wide[:, 64:192], A, 2), _project(x, A, 2))


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("offset", range(1, 8))
def test_an_unaligned_input_gives_the_same_latent(offset: int) -> None:
    x, A = _operands((50, 2, 64, 2, 8), torch.bfloat16, transposed=False)
    storage = torch.empty(x.numel() + offset, dtype=x.dtype, device="cuda")
    shifted = storage[offset:].view_as(x).copy_(x)
    assert not _takes_the_kernel(shifted, A, 2)
    torch.testing.assert_close(_project(shifted, A, 2), _project(x, A, 2), rtol=2**-7, atol=1e-3)


GAPS = {"packed_blocks": (64, 2, 4), "gap_after_a_block": (2, 1028)}


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("shape", GAPS.values(), ids=GAPS.keys())
def test_blocks_of_the_factor_that_start_off_a_boundary(shape: tuple[int, ...]) -> None:
    store = torch.randn(shape, device="cuda").bfloat16()
    A = store.transpose(0, 1) if len(shape) == 3 else store[:, :1024].view(2, 64, 16)
    x = torch.randn(9, 128, device="cuda").bfloat16()
    assert (
        _C.select_project(T=9, width=64, columns=A.shape[2], factor_block_stride=A.stride(0))[
            "possible"
        ]
        is False
    )
    torch.testing.assert_close(
        _project(x, A, 2), _project(x, A.contiguous(), 2), rtol=2**-7, atol=2e-2
    )


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda", "poisoned_memory")
@dtypes
def test_fp32_factors_are_rounded_to_nearest(dtype: torch.dtype) -> None:
    special = [0.0, -0.0, 1e-42, 1e-40, 1e-6, 1.00390625, 1.01171875, 65519.9, 65520.0, 3.4e38]
    special += [float("inf"), float("-inf"), float("nan")]
    # 61 numbers: a group that is not whole. One input feature: a latent is a single product.
    A = torch.randn(1, 1, 61, device="cuda")
    A.view(-1)[: len(special)] = torch.tensor(special)
    A.view(-1)[-len(special) :] = torch.tensor(special)
    H = _project(torch.ones(1, 1, dtype=dtype, device="cuda"), A, 1)
    torch.testing.assert_close(H.view(-1), A.view(-1).to(dtype), rtol=0, atol=0, equal_nan=True)


def _gradients(factor_dtype: torch.dtype, r0: int, T: int) -> list[Tensor]:
    """dA, dB and, for a hybrid, dlora_A and dlora_B of one bf16 step, factors in another dtype."""
    torch.manual_seed(3)
    bf16 = torch.bfloat16
    x, dy = torch.randn(T, 48, device="cuda").to(bf16), torch.randn(T, 48, device="cuda").to(bf16)
    weight = torch.randn(48, 48, device="cuda").to(bf16)
    sizes = [(2, 24, 6), (2, 6, 24)] + ([(r0, 48), (48, r0)] if r0 else [])
    factors = [torch.randn(size, device="cuda").to(bf16).to(factor_dtype) for size in sizes]
    factors = [factor.requires_grad_() for factor in factors]
    given = [*factors, None, None][:4]
    y = torch.ops.gralora.linear(x, weight, None, *given, scaling=0.5)
    return list(torch.autograd.grad(y, factors, dy))


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("r0", [0, 5], ids=["grid", "hybrid"])
def test_gradients_of_16_bit_factors_are_the_fp32_ones_rounded(r0: int) -> None:
    wide, narrow = _gradients(torch.float32, r0, 65), _gradients(torch.bfloat16, r0, 65)
    assert all(gradient.dtype == torch.float32 for gradient in wide)
    assert all(gradient.dtype == torch.bfloat16 for gradient in narrow)
    for exact, rounded in zip(wide, narrow, strict=True):
        assert torch.equal(exact.bfloat16(), rounded)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("T", [1, 2, 16, 17, 31, 32, 33])
def test_gradients_of_few_tokens_are_rounded_once(T: int) -> None:
    wide, narrow = _gradients(torch.float32, 5, T), _gradients(torch.bfloat16, 5, T)
    for exact, rounded in zip(wide, narrow, strict=True):
        assert rounded.dtype == torch.bfloat16
        # The order of the fp32 sum is the library's: a tie apart, half a place is the whole error.
        error = (rounded.double() - exact.double()).abs()
        assert (error <= 2**-8 * exact.double().abs() * 1.001 + 1e-5).all()


# A chip without kernels of its own (test_select_sm90.py has those).
ALIGNED: dict[str, Any] = {
    "T": 8192, "width": 2048, "columns": 32, "inner": 2, "outer": 2, "sm90": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "possible", "reason"),
    [
        ({"half": False}, False, "operands are not of 16 bits"),
        ({"width": 2044}, False, "the block width is not a multiple of 8"),
        ({"width": 2**30 + 8}, False, "a block is wider than 2^30"),
        ({"x_row_stride": 4100}, False, "rows of the input are not 16-byte aligned"),
        ({"address": 8}, False, "rows of the input are not 16-byte aligned"),
        ({"columns": 30}, False, "rows of the factor are not 16-byte aligned"),
        ({"factor_block_stride": 65540}, False, "rows of the factor are not 16-byte aligned"),
        ({"outer": 1}, True, "one outer block: the product needs no exchange"),
        ({"columns": 40}, True, "more than 32 columns and 2^16 latents"),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else None,
)
def test_what_goes_to_library_products(change: dict[str, Any], possible: bool, reason: str) -> None:
    choice = _C.select_project(**ALIGNED)
    assert (choice["path"], choice["possible"], choice["tile"]) == ("kernel", True, (64, 32))
    choice = _C.select_project(**{**ALIGNED, **change})
    assert choice["path"] == "library"
    assert (choice["possible"], choice["reason"]) == (possible, reason)


@pytest.mark.parametrize("sm90", [False, True])
@pytest.mark.parametrize("pitch", [1, 3, 128])
def test_the_stride_of_an_axis_with_one_place_may_be_any_number(pitch: int, sm90: bool) -> None:
    shape = {**ALIGNED, "columns": 1, "factor_block_stride": 2048, "sm90": sm90}
    choice = _C.select_project(**shape, factor_pitch=pitch, factor_transposed=True)
    assert choice["possible"]
    choice = _C.select_project(**{**shape, "columns": 2}, factor_pitch=3, factor_transposed=True)
    assert choice["reason"] == "rows of the factor are not 16-byte aligned"


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("cuda", "poisoned_memory")
@pytest.mark.parametrize("stride", [1, 3, 64])
@pytest.mark.parametrize("path", ["sm80", "sm90"])
@dtypes
def test_latents_of_rank_one_whatever_the_stride_of_their_axis(
    dtype: torch.dtype, path: str, stride: int
) -> None:
    x = torch.randn(300, 64, device="cuda").to(dtype)
    B = torch.randn(1, 1, 64, device="cuda").to(dtype).as_strided((1, 1, 64), (64, stride, 1))
    with kernels.forced(path):
        H = _project(x, B.mT, 1)
    exact, sizes = _exact(x, B.mT, 1)
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5 * sizes
    assert ((H.double() - exact).abs() <= bound + torch.finfo(dtype).smallest_normal).all()


@pytest.mark.parametrize(
    ("T", "columns", "tile", "splits"),
    [
        (1, 64, (16, 32), 8),
        (1, 128, (16, 32), 8),
        (64, 64, (16, 32), 4),
        (128, 64, (64, 32), 8),
        (256, 64, (16, 32), 1),
        (512, 64, (16, 32), 1),
        (2048, 32, (64, 32), 1),
        (2048, 64, (64, 32), 1),
        (2048, 128, (128, 64), 1),
        (8192, 64, (128, 64), 1),
    ],
)
def test_the_largest_tile_that_fills_the_chip_by_splitting_the_width(
    T: int, columns: int, tile: tuple[int, int], splits: int
) -> None:
    shape = {"width": 1024, "columns": columns, "inner": 4, "outer": 4, "sm90": False}
    choice = _C.select_project(T=T, processors=132, cluster=8, **shape)
    assert (choice["tile"], choice["splits"]) == (tile, splits)


@pytest.mark.parametrize(
    ("T", "columns", "tile"),
    [(1, 64, (16, 32)), (512, 64, (16, 32)), (2048, 64, (64, 32)), (8192, 64, (128, 64))],
)
def test_a_chip_without_clusters_splits_nothing(
    T: int, columns: int, tile: tuple[int, int]
) -> None:
    shape = {"width": 1024, "columns": columns, "inner": 4, "outer": 4, "sm90": False}
    choice = _C.select_project(T=T, processors=132, cluster=1, **shape)
    assert (choice["tile"], choice["splits"]) == (tile, 1)


@pytest.mark.parametrize(("width", "splits"), [(128, 1), (504, 1), (512, 4), (640, 2), (4096, 8)])
def test_every_split_of_a_wide_block_has_at_least_one_step(width: int, splits: int) -> None:
    choice = _C.select_project(T=1, width=width, columns=16, inner=1, outer=2)
    assert choice["splits"] == splits


def test_a_cluster_is_no_larger_than_the_chip_holds() -> None:
    shape = {"T": 1, "width": 4096, "columns": 16, "inner": 1, "outer": 2}
    assert [_C.select_project(**shape, cluster=c)["splits"] for c in (1, 2, 4, 8)] == [1, 2, 4, 8]


def test_a_smaller_chip_takes_the_larger_tile_earlier() -> None:
    shape = {
        "T": 512,
        "width": 1024,
        "columns": 64,
        "inner": 4,
        "outer": 4,
        "cluster": 1,
        "sm90": False,
    }
    assert _C.select_project(**shape, processors=132)["tile"] == (16, 32)
    assert _C.select_project(**shape, processors=42)["tile"] == (64, 32)
