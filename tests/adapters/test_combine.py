"""Weighted sums of adapters, against sums of dense weight differences in float64."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import llama, logits, our_adapter
from loose_layers import dense, random_layer
from peft import PeftModel
from torch import Tensor

import gralora
from gralora.adapters import load_into
from gralora.adapters.combine import combine
from gralora.adapters.stored import StoredLayer, read_adapter
from gralora.adapters.sums import relative_error
from gralora.adapters.write import write_adapter

pytestmark = pytest.mark.filterwarnings("ignore:write_adapter")


def _save(directory: Path, **layers: StoredLayer) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        write_adapter(directory, layers)
    return directory


def _layer(directory: Path, name: str = "x") -> StoredLayer:
    return read_adapter(directory).layers[name]


EQUAL_GRIDS: dict[str, list[dict[str, Any]]] = {
    "equal ranks": [{}, {}],
    "different ranks": [{"r": 4}, {"r": 12}, {"r": 2}],
    "different scales": [{"alpha": 3}, {"alpha": 7, "use_rslora": True}],
    "rectangular": [{"k": (3, 4)}, {"k": (3, 4), "r": 16}],
    "hybrid and plain": [{"hybrid_r": 3}, {}, {"hybrid_r": 2}],
    "one": [{"hybrid_r": 1}],
}
ANY_GRIDS: dict[str, list[dict[str, Any]]] = {
    **EQUAL_GRIDS,
    "nested grids": [{"k": 2}, {"k": 4}],
    "grids that cross": [{"k": (2, 3), "r": 6}, {"k": (3, 2)}],
    "a LoRA": [{"k": 1, "r": 5}, {"k": 4, "hybrid_r": 2}],
}
WEIGHTS = (0.7, -1.3, 2.0)


def _saved(folder: Path, shapes: list[dict[str, Any]]) -> tuple[list[Path], list[float], Tensor]:
    """Adapters of one layer, weights, and the dense sum."""
    layers = [random_layer(**shape, seed=seed) for seed, shape in enumerate(shapes)]
    paths = [_save(folder / str(number), x=layer) for number, layer in enumerate(layers)]
    weights = list(WEIGHTS[: len(layers)])
    total = sum(w * dense(layer) for w, layer in zip(weights, layers, strict=True))
    assert isinstance(total, Tensor)
    return paths, weights, total


@pytest.mark.parametrize("case", EQUAL_GRIDS)
def test_ranks_side_by_side_are_the_exact_sum(case: str, tmp_path: Path) -> None:
    paths, weights, total = _saved(tmp_path, EQUAL_GRIDS[case])
    result = combine(paths, tmp_path / "out", weights=weights)
    layer = _layer(tmp_path / "out")
    torch.testing.assert_close(dense(layer), total, rtol=1e-12, atol=1e-12)
    assert result.errors["x"] < 1e-13
    assert layer.spec.r == sum(shape.get("r", 8) for shape in EQUAL_GRIDS[case])
    assert layer.spec.hybrid_r == sum(shape.get("hybrid_r", 0) for shape in EQUAL_GRIDS[case])


PATTERNS: dict[str, list[dict[str, Any]]] = {
    "other layers": [{"target_modules": ["q_proj"]}, {"target_modules": ["v_proj", "q_proj"]}],
    "ranks of single layers": [{"rank_pattern": {"v_proj": 4}}, {"rank_pattern": {"q_proj": 12}}],
    "a hybrid of one layer": [
        {"target_modules": ["q_proj"], "hybrid_r": 2},
        {"target_modules": ["v_proj"], "r": 4},
    ],
}


@pytest.mark.parametrize("case", PATTERNS)
def test_sums_with_one_square_grid_are_pefts(case: str, tmp_path: Path) -> None:
    base, total = llama(), {}
    for number, settings in enumerate(PATTERNS[case]):
        our_adapter(tmp_path / str(number), **settings)
        for name, layer in read_adapter(tmp_path / str(number)).layers.items():
            total[name] = total.get(name, 0) + WEIGHTS[number] * dense(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = combine([tmp_path / "0", tmp_path / "1"], tmp_path / "sum", weights=WEIGHTS[:2])
    assert result.peft_loads
    assert len({spec.r for spec in result.specs.values()}) == 1
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "sum").eval()
    # The reference has no adapter: its weights are the sums.
    with torch.no_grad():
        for name, delta in total.items():
            base.get_submodule(name).weight += delta.float()
    torch.testing.assert_close(logits(loaded), logits(base), rtol=1e-4, atol=1e-4)
    assert max(result.errors.values()) < 1e-6


def test_ranks_that_a_layer_lacks_are_zeros(tmp_path: Path) -> None:
    few, many = random_layer(r=4, alpha=4), random_layer(r=12, alpha=12, seed=1)
    result = combine([_save(tmp_path / "a", few=few, many=many)], tmp_path / "b")
    assert {spec.r for spec in result.specs.values()} == {12}
    layer = _layer(tmp_path / "b", "few")
    torch.testing.assert_close(dense(layer), dense(few), rtol=1e-13, atol=1e-13)
    assert int((layer.A != 0).sum()) == few.A.numel()


@pytest.mark.parametrize("k", [(2, 4), 4], ids=["rectangular", "different"])
def test_grids_that_peft_lacks_keep_the_rank_of_each_layer(k: Any, tmp_path: Path) -> None:
    other = random_layer(r=12, k=k) if k == 4 else random_layer(r=4, k=k)
    first = random_layer(r=8, k=2) if k == 4 else random_layer(r=8, k=k)
    result = combine([_save(tmp_path / "a", x=first, y=other)], tmp_path / "b")
    assert not result.peft_loads
    assert [result.specs[name].r for name in "xy"] == [first.spec.r, other.spec.r]


def test_without_weights_each_counts_once(tmp_path: Path) -> None:
    paths, _, _ = _saved(tmp_path, [{}, {}])
    combine(paths, tmp_path / "out")
    expected = dense(_layer(paths[0])) + dense(_layer(paths[1]))
    torch.testing.assert_close(dense(_layer(tmp_path / "out")), expected)


def test_factors_of_an_unweighted_sum_keep_every_bit(tmp_path: Path) -> None:
    layers = [random_layer(dtype=torch.bfloat16, alpha=7, seed=seed) for seed in (0, 1)]
    paths = [_save(tmp_path / str(i), x=layer) for i, layer in enumerate(layers)]
    result = combine(paths, tmp_path / "out")
    layer = _layer(tmp_path / "out")
    assert layer.A.dtype == layer.B.dtype == torch.bfloat16
    assert sorted(layer.B.flatten().tolist()) == sorted(
        [number for one in layers for number in one.B.flatten().tolist()]
    )
    assert result.errors["x"] < 1e-14


def test_weights_that_16_bits_do_not_hold_make_float32(tmp_path: Path) -> None:
    path = _save(tmp_path / "a", x=random_layer(dtype=torch.float16))
    result = combine([path], tmp_path / "out", weights=[1 / 3])
    assert _layer(tmp_path / "out").B.dtype == torch.float32
    assert 1e-10 < result.errors["x"] < 1e-7


def _best_error(total: Tensor, k: tuple[int, int], s: int) -> float:
    """Least possible relative error, from the singular values of dense blocks."""
    m, n = total.shape[0] // k[0], total.shape[1] // k[1]
    lost = sum(
        float(torch.linalg.svdvals(block)[s:].square().sum())
        for row in total.split(m, 0)
        for block in row.split(n, 1)
    )
    return (lost / float(total.square().sum())) ** 0.5


@pytest.mark.parametrize("case", ANY_GRIDS)
@pytest.mark.parametrize(("rank", "k"), [(4, 2), (12, (3, 4)), (3, 1)], ids=str)
def test_truncated_sum_is_the_best_of_its_rank(
    case: str, rank: int, k: Any, tmp_path: Path
) -> None:
    paths, weights, total = _saved(tmp_path, ANY_GRIDS[case])
    result = combine(paths, tmp_path / "out", weights=weights, rank=rank, k=k)
    layer = _layer(tmp_path / "out")
    grid = (k, k) if isinstance(k, int) else k
    assert (layer.spec.r, layer.spec.k_out, layer.spec.k_in) == (rank, *grid)
    best = _best_error(total, grid, rank // grid[1])
    actual = float((dense(layer) - total).norm() / total.norm())
    assert actual == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert result.errors["x"] == pytest.approx(actual, rel=1e-9, abs=1e-12)
    assert best > 0.01


def test_rank_that_suffices_loses_nothing(tmp_path: Path) -> None:
    paths, weights, total = _saved(tmp_path, ANY_GRIDS["nested grids"])
    result = combine(paths, tmp_path / "out", weights=weights, rank=24)
    torch.testing.assert_close(dense(_layer(tmp_path / "out")), total)
    assert result.errors["x"] < 1e-13


@pytest.mark.parametrize("rank", [20, 80], ids=["above the parts'", "above the blocks'"])
def test_rank_beyond_that_of_every_block_is_filled_with_zeros(rank: int, tmp_path: Path) -> None:
    layer = random_layer(r=4, k=2)
    combine([_save(tmp_path / "a", x=layer)], tmp_path / "out", rank=rank, k=2)
    result = _layer(tmp_path / "out")
    assert (result.spec.r, result.A.shape[2], result.B.shape[1]) == (rank, rank, rank)
    torch.testing.assert_close(dense(result), dense(layer), rtol=1e-12, atol=1e-12)


def test_adapter_that_is_brought_to_the_rank_of_a_model_is_loaded_into_it(tmp_path: Path) -> None:
    base = llama().double()
    our_adapter(tmp_path / "small", base, r=4)
    our_adapter(tmp_path / "large", base, r=16)
    combine([tmp_path / "small"], tmp_path / "out", rank=16)
    model = gralora.load_adapter(llama().double(), tmp_path / "large").eval()
    load_into(model, tmp_path / "out")
    expected = gralora.load_adapter(llama().double(), tmp_path / "small").eval()
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-6, atol=1e-6)


def test_without_k_the_finest_grid_is_taken(tmp_path: Path) -> None:
    paths, weights, _ = _saved(tmp_path, [{"k": (2, 4)}, {"k": (3, 2)}])
    combine(paths, tmp_path / "out", weights=weights, rank=8)
    spec = _layer(tmp_path / "out").spec
    assert (spec.k_out, spec.k_in) == (3, 4)


def test_layer_of_one_adapter_alone_is_its_share(tmp_path: Path) -> None:
    x, y = random_layer(seed=1), random_layer(seed=2, hybrid_r=2)
    _save(tmp_path / "a", x=x)
    _save(tmp_path / "b", y=y)
    result = combine([tmp_path / "a", tmp_path / "b"], tmp_path / "out", weights=[2, 3])
    assert max(result.errors.values()) < 1e-14
    torch.testing.assert_close(dense(_layer(tmp_path / "out", "x")), 2 * dense(x))
    torch.testing.assert_close(dense(_layer(tmp_path / "out", "y")), 3 * dense(y))


@pytest.mark.parametrize("rank", [None, 16], ids=["side by side", "truncated"])
def test_peft_loads_the_sum_of_adapters_of_one_kind(rank: int | None, tmp_path: Path) -> None:
    base = llama().double()
    for name, seed in (("a", 5), ("b", 6)):
        our_adapter(tmp_path / name, base, alpha=seed)
    combine([tmp_path / "a", tmp_path / "b"], tmp_path / "out", weights=[0.5, 2.0], rank=rank)
    ours = gralora.load_adapter(llama().double(), tmp_path / "out").eval()
    peft = PeftModel.from_pretrained(llama().double(), tmp_path / "out").double().eval()
    torch.testing.assert_close(logits(peft), logits(ours), rtol=1e-6, atol=1e-6)
    assert (logits(ours) - logits(base)).abs().max() > 1e-3


def test_sum_that_cancels_has_no_error(tmp_path: Path) -> None:
    path = _save(tmp_path / "a", x=random_layer())
    result = combine([path, path], tmp_path / "out", weights=[1, -1])
    assert result.errors["x"] == 0


def test_relative_error_is_that_of_dense_matrices() -> None:
    parts = [(0.5, random_layer(k=2)), (2.0, random_layer(k=(3, 4), seed=1, hybrid_r=2))]
    result = random_layer(k=(2, 4), seed=3)
    total = 0.5 * dense(parts[0][1]) + 2 * dense(parts[1][1])
    expected = float((dense(result) - total).norm() / total.norm())
    assert relative_error((parts, result)) == pytest.approx(expected, rel=1e-12)


def test_relative_error_sees_small_differences() -> None:
    layer = random_layer()
    other = StoredLayer(layer.spec, layer.A, layer.B.clone())
    other.B[0, 0, 0] += 1e-9
    expected = float((dense(other) - dense(layer)).norm() / dense(layer).norm())
    assert 0 < expected < 1e-9
    assert relative_error(([(1.0, layer)], other)) == pytest.approx(expected, rel=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "different grids": ({}, r"equal grids only, got 2 x 2, 4 x 4 for x \(give a rank"),
    "too few weights": ({"weights": [1.0]}, "one for each adapter, got 1 for 2"),
    "a weight of zero": ({"weights": [1, 0]}, "finite numbers other than zero, got 0"),
    "an infinite weight": ({"weights": [1, float("inf")]}, "finite numbers .* got inf"),
    "k alone": ({"k": 2}, "k must come with a rank"),
    "rank that k does not divide": ({"rank": 6, "k": 4}, "combine: x: r must be divisible by k_in"),
    "grid that does not fit": ({"rank": 5, "k": 5}, "in_features must be divisible by k_in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    settings, message = REFUSED[case]
    paths, _, _ = _saved(tmp_path, [{"k": 2}, {"k": 4}])
    with pytest.raises(ValueError, match=message):
        combine(paths, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        combine([], tmp_path / "out")


def test_other_widths_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "a", x=random_layer(24, 36))
    _save(tmp_path / "b", x=random_layer(36, 24))
    with pytest.raises(ValueError, match="one base model, got x of shapes 36 x 24, 24 x 36"):
        combine([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"modules_to_save": ["lm_head"]}, "whole modules"), ({"bias": "all"}, "trained biases")],
    ids=["whole modules", "biases"],
)
def test_values_that_are_no_differences_are_refused(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    our_adapter(tmp_path / "a", llama(attention_bias=True), **settings)
    with pytest.raises(ValueError, match=f"adapters must have factors alone.*got {words}"):
        combine([tmp_path / "a"], tmp_path / "out")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    layer = random_layer()
    layer.B[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        combine([_save(tmp_path / "a", x=layer)], tmp_path / "out", rank=4)


def test_different_base_models_are_told(tmp_path: Path) -> None:
    for name in "ab":
        write_adapter(
            tmp_path / name, {"x": random_layer()}, base_model_name_or_path=f"base-{name}"
        )
    with pytest.warns(UserWarning, match="different base models: base-a, base-b; the result names"):
        combine([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert read_adapter(tmp_path / "out").config.base_model_name_or_path == "base-a"


def test_result_may_replace_one_of_the_adapters(tmp_path: Path) -> None:
    path = _save(tmp_path / "a", x=random_layer())
    before = dense(_layer(path))
    combine([path, path], path, overwrite=True)
    torch.testing.assert_close(dense(_layer(path)), 2 * before)
