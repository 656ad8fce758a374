"""Norms and ranks from the factors, against singular values of dense matrices."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from adapters_on_disk import our_adapter
from loose_layers import SHAPES, dense, random_layer

from gralora.adapters.inspection import inspect_adapter
from gralora.adapters.spectrum import spectrum
from gralora.adapters.stored import StoredAdapter, StoredLayer, read_adapter
from gralora.adapters.write import write_adapter


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_the_weight_difference(shape: str) -> None:
    layer = random_layer(**SHAPES[shape])
    expected = torch.linalg.svdvals(dense(layer))
    found = spectrum(layer).singular_values
    count = min(len(expected), len(found))
    torch.testing.assert_close(found[:count], expected[:count], rtol=1e-12, atol=1e-11)
    assert float(expected[count:].sum()) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_block_norms_are_those_of_the_dense_blocks(shape: str) -> None:
    layer = random_layer(**SHAPES[shape])
    rows = dense(layer).chunk(layer.spec.k_out, 0)
    expected = [[block.norm() for block in row.chunk(layer.spec.k_in, 1)] for row in rows]
    found = torch.tensor(spectrum(layer).block_norms, dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_is_that_of_the_weight_difference(shape: str) -> None:
    layer = random_layer(**SHAPES[shape])
    assert spectrum(layer).norm == pytest.approx(float(dense(layer).norm()), rel=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_effective_ranks_are_those_of_the_weight_difference(shape: str) -> None:
    layer = random_layer(**SHAPES[shape])
    values = torch.linalg.svdvals(dense(layer))
    values = values[values > 1e-10]
    shares = values / values.sum()
    entropy = math.exp(-float((shares * shares.log()).sum()))
    energies = values.square() / values.square().sum()
    count = next(
        count for count in range(1, len(energies) + 1) if float(energies[:count].sum()) >= 0.99
    )
    found = spectrum(layer)
    assert found.entropy_rank == pytest.approx(entropy, rel=1e-9)
    assert found.energy_rank == count


def test_equal_singular_values_have_their_number_as_rank() -> None:
    spec = random_layer(8, 8, r=4, k=1).spec
    layer = StoredLayer(spec, torch.eye(8)[None, :, :4], torch.eye(8)[None, :4])
    found = spectrum(layer)
    assert found.entropy_rank == pytest.approx(4)
    assert found.energy_rank == 4


def test_small_singular_values_are_not_lost() -> None:
    # By Gram matrices everything below 1e-8 of the largest would be noise.
    spec = random_layer(8, 8, r=2, k=1).spec
    A = torch.zeros(1, 8, 2, dtype=torch.float64)
    A[0, 0, 0], A[0, 1, 1] = 1.0, 1e-11
    layer = StoredLayer(spec, A, torch.eye(8, dtype=torch.float64)[None, :2])
    expected = torch.tensor([1.0, 1e-11], dtype=torch.float64) * spec.scaling
    torch.testing.assert_close(spectrum(layer).singular_values, expected, rtol=1e-10, atol=0)


def test_fresh_adapter_has_rank_and_norm_zero() -> None:
    layer = random_layer(hybrid_r=2)
    assert layer.lora_B is not None
    fresh = StoredLayer(
        layer.spec, layer.A, torch.zeros_like(layer.B), layer.lora_A, torch.zeros_like(layer.lora_B)
    )
    found = spectrum(fresh)
    assert (found.norm, found.entropy_rank, found.energy_rank) == (0, 0, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_numbers_that_are_not_finite_are_refused(value: float, factor: str) -> None:
    layer = random_layer()
    getattr(layer, factor)[0, 0, 0] = value
    with pytest.raises(ValueError, match="factors must be finite"):
        spectrum(layer)


@pytest.mark.parametrize("shape", SHAPES)
def test_largest_rank_is_that_of_random_factors(shape: str, tmp_path: Path) -> None:
    layer = random_layer(**SHAPES[shape])
    report = inspect_adapter(_stored(tmp_path, layer)).layers["x"]
    assert report.largest_rank == int(torch.linalg.matrix_rank(dense(layer)))


def _stored(folder: Path, layer: StoredLayer) -> StoredAdapter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        write_adapter(folder, {"x": layer})
    return read_adapter(folder)


def test_report_counts_parameters(tmp_path: Path) -> None:
    model = our_adapter(tmp_path, hybrid_r=3, modules_to_save=["lm_head"])
    report = inspect_adapter(tmp_path)
    assert report.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.other_parameters == 64 * 32


def test_report_names_norms_of_all_layers_together(tmp_path: Path) -> None:
    our_adapter(tmp_path)
    stored = read_adapter(tmp_path)
    expected = math.hypot(*(float(dense(layer).norm()) for layer in stored.layers.values()))
    assert inspect_adapter(stored).norm == pytest.approx(expected)


def test_spread_compares_the_blocks_of_a_layer(tmp_path: Path) -> None:
    layer = random_layer(k=2)
    layer.B[0] *= 100
    report = inspect_adapter(_stored(tmp_path, layer)).layers["x"]
    norms = [float(b.norm()) for row in dense(layer).chunk(2, 0) for b in row.chunk(2, 1)]
    assert report.spread == pytest.approx(max(norms) / min(norms))


def test_mean_squares_do_not_depend_on_the_size_of_blocks(tmp_path: Path) -> None:
    layer = random_layer(k=(3, 4))
    report = inspect_adapter(_stored(tmp_path, layer)).layers["x"]
    expected = [
        [float(block.square().mean().sqrt()) for block in row.chunk(4, 1)]
        for row in dense(layer).chunk(3, 0)
    ]
    torch.testing.assert_close(torch.tensor(report.block_rms), torch.tensor(expected))


def test_progress_counts_to_the_number_of_layers(tmp_path: Path) -> None:
    our_adapter(tmp_path)
    seen: list[tuple[int, int]] = []
    inspect_adapter(tmp_path, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layers.{number}.{kind}" for number in (0, 2, 10) for kind in ("down", "up")]
    write_adapter(tmp_path, dict.fromkeys(reversed(names), random_layer()))
    assert list(inspect_adapter(tmp_path).layers) == names
