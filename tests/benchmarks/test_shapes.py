"""Reading shapes, ranks and token counts, and the presets."""

import pytest

from gralora.bench.shapes import MODELS, LayerShape, parse_ranks, parse_shapes, parse_tokens


def test_shapes_are_in_by_out_features() -> None:
    assert parse_shapes("4096x14336,8x4") == [LayerShape(4096, 14336), LayerShape(8, 4)]


@pytest.mark.parametrize("text", ["4096", "4096x", "0x8", "ax8", "8x8x8", "8x8,"])
def test_malformed_shape_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="shapes: two positive integers"):
        parse_shapes(text)


def test_ranks_are_rank_and_grid() -> None:
    assert parse_ranks("32:2,64:4") == [(32, 2), (64, 4)]


def test_rank_that_the_grid_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="got r=6, k=4"):
        parse_ranks("6:4")


@pytest.mark.parametrize("text", ["", "0", "-1", "1,x"])
def test_malformed_token_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tokens: positive integers"):
        parse_tokens(text)


@pytest.mark.parametrize("model", MODELS)
def test_preset_is_a_decoder_layer(model: str) -> None:
    query, key, up, down = MODELS[model]
    assert query.in_features == query.out_features == key.in_features == up.in_features
    assert (up.in_features, up.out_features) == (down.out_features, down.in_features)


def test_llama_8b_shapes() -> None:
    assert [shape.text for shape in MODELS["llama-3.1-8b"]] == [
        "4096x4096",
        "4096x1024",
        "4096x14336",
        "14336x4096",
    ]
