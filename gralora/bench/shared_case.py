"""The case ``shared`` of the suite ``layer``: linear layers that read the same input."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gralora.bench.case import SHARED, Case

_FORM = re.compile(r"([1-9]\d*)x([1-9]\d*(?:\+[1-9]\d*){1,2})")


@dataclass(frozen=True)
class SharedCase(Case):
    """Layers that read one x, an adapter for each, and a token count.

    ``widths`` are the layers' out_features, and ``out_features`` is their sum.
    """

    base: str = SHARED
    widths: tuple[int, ...] = ()

    @property
    def layers(self) -> tuple[Case, ...]:
        """Each layer by itself."""
        return tuple(
            Case(self.in_features, width, self.tokens, self.rank, self.grid, self.dtype, self.cold)
            for width in self.widths
        )

    @property
    def products(self) -> tuple[tuple[int, int, int], ...]:
        """One for each layer: rows, in- and out-features."""
        return tuple((self.tokens, self.in_features, width) for width in self.widths)

    @property
    def result_widths(self) -> tuple[int, ...]:
        """Width of each layer's y."""
        return self.widths

    @property
    def input_elements(self) -> int:
        """Those of x, which one pass could read once for all layers."""
        return self.tokens * self.in_features


def parse_groups(text: str) -> list[tuple[int, tuple[int, ...]]]:
    """Read ``"4096x4096+1024+1024,…"`` as pairs of in_features and the layers' out_features.

    Raises:
        ValueError: another form, or not two or three layers.
    """
    found = []
    for item in text.split(","):
        match = _FORM.fullmatch(item.strip())
        if not match:
            raise ValueError(
                "groups: in_features x the out_features of two or three layers, as "
                f"4096x4096+1024+1024, got {item!r}"
            )
        found.append((int(match[1]), tuple(map(int, match[2].split("+")))))
    return found
