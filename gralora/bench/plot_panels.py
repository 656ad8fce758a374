"""What the plots of each suite show: results as groups of bars, or as lines over token counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gralora.bench.case import base_text, shape_text, timings_by_weight

Record = Mapping[str, Any]

# Fewer token counts than this are groups of bars.
_FEWEST_POINTS = 3


@dataclass(frozen=True)
class Panel:
    """One diagram: ``series[name][group]`` over the groups, bars or, over token counts, lines.

    ``reference`` is drawn as a line; a value that was not measured is None.
    """

    title: str
    label: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    tokens: Sequence[int] | None = None
    reference: float = 1.0


def panels(record: Record) -> list[Panel]:
    """What is drawn of a record.

    Raises:
        ValueError: a suite without a picture, or a record without timings.
    """
    suite = record["suite"]
    if suite not in _SUITES:
        raise ValueError(f"plot: results of one of {', '.join(_SUITES)}, got {suite!r}")
    drawn = _SUITES[suite](record)
    if not drawn:
        raise ValueError(f"plot: the results of {suite} hold no timings")
    return drawn


def _ratio(reference: str) -> Callable[[Record], float | None]:
    def value(timing: Record) -> float | None:
        found = timing["ratio"].get(reference)
        return float(found["median"]) if found else None

    return value


def _share(name: str) -> Callable[[Record], float | None]:
    return lambda timing: float(timing[name]["median"])


def _panel(
    title: str,
    label: str,
    timings: Iterable[Record],
    *,
    group: Callable[[Record], str],
    series: Callable[[Record], str],
    value: Callable[[Record], float | None],
    tokens: bool = False,
    leave_out: str | None = None,
) -> Panel:
    found: dict[str, dict[str, float | None]] = {}
    groups: dict[str, int] = {}
    for timing in timings:
        groups[group(timing)] = timing["case"]["tokens"] if tokens else 0
        if series(timing) != leave_out:
            found.setdefault(series(timing), {})[group(timing)] = value(timing)
    lines = tokens and len(set(groups.values())) >= _FEWEST_POINTS
    return Panel(
        title,
        label,
        list(groups),
        {name: [values.get(g) for g in groups] for name, values in found.items()},
        list(groups.values()) if lines else None,
    )


def _layer_panels(record: Record) -> list[Panel]:
    """A panel to each pass; where token counts vary, one to each layer and pass."""
    timings = record["timings"]
    drawn = []
    over_tokens = len({timing["case"]["tokens"] for timing in timings}) >= _FEWEST_POINTS
    for mode in dict.fromkeys(timing["mode"] for timing in timings):
        for pass_name in dict.fromkeys(timing["pass"] for timing in timings):
            chosen = [t for t in timings if (t["mode"], t["pass"]) == (mode, pass_name)]
            parts = dict.fromkeys(_layer_of(t) for t in chosen) if over_tokens else (None,)
            for part in parts:
                drawn.append(
                    _panel(
                        f"{part + ', ' if part else ''}{pass_name}, {_CLOCKS[mode]}",
                        "time over the\nfrozen layer",
                        [t for t in chosen if part in (None, _layer_of(t))],
                        group=_tokens_of if over_tokens else _short_case,
                        series=lambda t: str(t["variant"]),
                        value=_ratio("base"),
                        tokens=over_tokens,
                        leave_out="base",
                    )
                )
    return drawn


_CLOCKS = {"graph": "device time", "eager": "wall time"}


def _layer_of(timing: Record) -> str:
    case = timing["case"]
    adapter = f"r {case['rank']}, k {case['grid']}, {case['dtype']}"
    return f"{shape_text(case)}, {adapter}{base_text(case)}"


def _tokens_of(timing: Record) -> str:
    return f"T {timing['case']['tokens']}"


def _short_case(timing: Record) -> str:
    case = timing["case"]
    base = base_text(case).replace(", ", "\n")
    return f"{shape_text(case)}\nT {case['tokens']}\nr {case['rank']}, k {case['grid']}{base}"


def _kernels_panels(record: Record) -> list[Panel]:
    timings = record["timings"]
    drawn = []
    for case in dict.fromkeys(f"{_layer_of(t)}, {_tokens_of(t)}" for t in timings):
        chosen = [t for t in timings if f"{_layer_of(t)}, {_tokens_of(t)}" == case]
        drawn.append(
            _panel(
                case,
                "share of the floor",
                chosen,
                group=lambda t: str(t["variant"]).replace(" ", "\n"),
                series=lambda t: str(t["path"]),
                value=_share("share_of_floor"),
            )
        )
    return drawn


def _model_panels(record: Record) -> list[Panel]:
    timings = record["timings"]
    return [
        _panel(
            f"{model}, {layers} layers, {pass_name}",
            "time over the\nfrozen model",
            [
                t
                for t in timings
                if (t["case"]["model"], t["case"]["layers"], t["pass"])
                == (model, layers, pass_name)
            ],
            group=_model_group,
            series=lambda t: str(t["variant"]),
            value=_ratio("frozen"),
            leave_out="frozen",
        )
        for model, layers, pass_name in dict.fromkeys(
            (t["case"]["model"], t["case"]["layers"], t["pass"]) for t in timings
        )
    ]


def _model_group(timing: Record) -> str:
    case = timing["case"]
    checkpointing = "\ncheckpointing" if case["checkpointing"] else ""
    return f"T {case['tokens']}, r {case['rank']}, k {case['grid']}{checkpointing}"


def _host_panels(record: Record) -> list[Panel]:
    timings = record["timings"]
    return [
        _panel(
            f"{case}, {_tokens}: CPU time",
            "time over the\nfrozen layer",
            [t for t in timings if (_layer_of(t), _tokens_of(t)) == (case, _tokens)],
            group=lambda t: str(t["pass"]),
            series=lambda t: str(t["variant"]),
            value=_ratio("base"),
            leave_out="base",
        )
        for case, _tokens in dict.fromkeys((_layer_of(t), _tokens_of(t)) for t in timings)
    ]


def _merge_panels(record: Record) -> list[Panel]:
    return [
        _panel(
            f"weight {case['out_features']}x{case['in_features']}, r {case['rank']}, "
            f"k {case['grid']}, {case['dtype']}",
            "share of the\ncopy bandwidth",
            [t for t in timings if not t["variant"].startswith("copy")],
            group=lambda t: _CLOCKS[t["mode"]],
            series=lambda t: str(t["variant"]),
            value=_share("share_of_copy"),
        )
        for case, timings in timings_by_weight(record)
    ]


_SUITES: dict[str, Callable[[Record], list[Panel]]] = {
    "kernels": _kernels_panels,
    "layer": _layer_panels,
    "model": _model_panels,
    "host": _host_panels,
    "merge": _merge_panels,
}
