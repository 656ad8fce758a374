"""The case ``moe`` of the suite ``layer``: the experts of one mixture-of-experts layer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gralora.bench.case import EXPERTS, Case

_FORM = re.compile(r"([1-9]\d*)x([1-9]\d*):([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True)
class ExpertsCase(Case):
    """Gated experts, adapters and a token count.

    ``in_features`` is the hidden size, ``out_features`` that of an expert's inside; ``experts`` is
    their number and ``chosen`` how many of them each token goes to. ``rank`` is each expert's.
    """

    base: str = EXPERTS
    experts: int = 8
    chosen: int = 2

    @property
    def products(self) -> tuple[tuple[int, int, int], ...]:
        """Gate and up in one product, and down: rows, in- and out-features of each."""
        rows = self.tokens * self.chosen
        return (
            (rows, self.in_features, 2 * self.out_features),
            (rows, self.out_features, self.in_features),
        )

    @property
    def weight_elements(self) -> int:
        """Of all experts."""
        return 3 * self.experts * self.in_features * self.out_features

    @property
    def result_widths(self) -> tuple[int, ...]:
        """The hidden size again."""
        return (self.in_features,)


def parse_experts(text: str) -> list[tuple[int, int, int, int]]:
    """Read ``"512x1024:8:2,…"``: hidden size x inside of an expert : experts : for each token.

    Raises:
        ValueError: another form, or more experts for a token than there are.
    """
    found = []
    for item in text.split(","):
        match = _FORM.fullmatch(item)
        if not match or int(match[4]) > int(match[3]):
            raise ValueError(
                "experts: HIDDENxINSIDE:EXPERTS:CHOSEN with at most EXPERTS chosen, as "
                f"512x1024:8:2, got {item!r}"
            )
        hidden, inside, experts, chosen = map(int, match.groups())
        found.append((hidden, inside, experts, chosen))
    return found
