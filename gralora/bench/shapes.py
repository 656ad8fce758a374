"""The layer shapes that the benchmarks time, and the text forms of their command-line options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """One linear layer, ``weight [out_features, in_features]``, under the names models give it."""

    in_features: int
    out_features: int
    name: str = ""

    @property
    def text(self) -> str:
        """``4096x14336``: in_features x out_features, as the command line takes it."""
        return f"{self.in_features}x{self.out_features}"


def _decoder(hidden: int, key_value: int, intermediate: int) -> tuple[LayerShape, ...]:
    """The seven projections of a Llama-like decoder layer, equal shapes named together."""
    return (
        LayerShape(hidden, hidden, "q_proj, o_proj"),
        LayerShape(hidden, key_value, "k_proj, v_proj"),
        LayerShape(hidden, intermediate, "gate_proj, up_proj"),
        LayerShape(intermediate, hidden, "down_proj"),
    )


MODELS: dict[str, tuple[LayerShape, ...]] = {
    "llama-3.1-8b": _decoder(hidden=4096, key_value=1024, intermediate=14336),
    "llama-3.2-3b": _decoder(hidden=3072, key_value=1024, intermediate=8192),
    "llama-3.1-70b": _decoder(hidden=8192, key_value=1024, intermediate=28672),
    "qwen2.5-7b": _decoder(hidden=3584, key_value=512, intermediate=18944),
    "smollm2-135m": _decoder(hidden=576, key_value=192, intermediate=1536),
}


def parse_shapes(text: str) -> list[LayerShape]:
    """Read ``"4096x4096,4096x14336"`` (in_features x out_features).

    Raises:
        ValueError: an item is not two positive integers joined by ``x``.
    """
    return [LayerShape(*_positive_pair(item, "x", "shapes")) for item in text.split(",")]


def parse_ranks(text: str) -> list[tuple[int, int]]:
    """Read ``"32:2,64:4"`` as pairs of rank r and square grid k.

    Raises:
        ValueError: an item is not ``r:k`` with k a divisor of r.
    """
    pairs = [_positive_pair(item, ":", "rk") for item in text.split(",")]
    for rank, grid in pairs:
        if rank % grid:
            raise ValueError(f"rk: r must be a multiple of k, got r={rank}, k={grid}")
    return pairs


def parse_tokens(text: str) -> list[int]:
    """Read ``"512,8192"``, token counts of at least one.

    Raises:
        ValueError: an item is not a positive integer.
    """
    tokens = [int(item) for item in text.split(",") if item.strip().isdecimal()]
    if len(tokens) != len(text.split(",")) or min(tokens) < 1:
        raise ValueError(f"tokens: positive integers joined by commas, got {text!r}")
    return tokens


def _positive_pair(item: str, separator: str, option: str) -> tuple[int, int]:
    first, found, second = item.strip().partition(separator)
    if not (found and first.isdecimal() and second.isdecimal() and int(first) and int(second)):
        raise ValueError(
            f"{option}: two positive integers joined by {separator!r} in each item, got {item!r}"
        )
    return int(first), int(second)
