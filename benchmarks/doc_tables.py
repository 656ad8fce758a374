"""Result files as the Markdown of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from model_suite import gibibytes, model_case_text

from gralora.bench.bases import libraries
from gralora.bench.case import case_text, timings_by_weight
from gralora.bench.labels import label_of
from gralora.bench.report import mebibytes

Record = Mapping[str, Any]

_TO = "\N{EN DASH}"
_TIMES = "\N{MULTIPLICATION SIGN}"

# Rows of the product's own variants are set in bold.
_OWN = ("gralora", "chosen", "sm80", "sm90")


def conditions(record: Record) -> str:
    """One paragraph: machine, versions, rounds, date and commit."""
    found = record["environment"]
    gpu = found.get("gpu")
    packages = found["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "peft", *libraries(record["settings"]))
        if packages.get(name)
    )
    if gpu:
        driver = (gpu.get("state") or {}).get("driver_version", "unknown")
        where = f"{gpu['name']} beside {found['cpu']}, driver {driver}, CUDA {gpu['torch_cuda']}"
    else:
        where = f"{found['cpu']}, {found['cpu_threads']} threads"
    # Memory alone is not measured in rounds.
    rounds = f"{record['settings']['rounds']} rounds; " if record["timings"] else ""
    when = f"{found['date'][:10]}, commit `{found['commit'][:12]}`"
    return f"{where}; {versions}, Python {found['python']}; {rounds}{when}."


def command(record: Record) -> str:
    """The command line that made the file."""
    line: str = record["environment"]["command"]
    return f"`python {line}`" if line.startswith("benchmarks/") else f"`{line}`"


def tables(record: Record) -> Iterator[str]:
    """Every table of a record, each with its title."""
    return _SUITES[record["suite"]](record)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """A table whose columns but the first ``text`` hold numbers; the last may be text as well."""
    marks = [
        "---" if index < text or name.startswith("quartiles") else "--:"
        for index, name in enumerate(columns)
    ]
    lines = [columns, marks, *rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{title}**\n\n{body}"


def _name(variant: str) -> str:
    label = label_of(variant)
    return f"**{label}**" if variant.startswith(_OWN) and " " not in variant else label


def _micro(timing: Record | None) -> str:
    if timing is None:
        return ""
    value = timing["seconds"]["median"] * 1e6
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _ratio(timing: Record | None, reference: str) -> str:
    found = timing["ratio"].get(reference) if timing else None
    return f"{found['median']:.2f}" if found else ""


def _quartiles(timing: Record | None, reference: str) -> str:
    found = timing["ratio"].get(reference) if timing else None
    if timing is None or found is None or timing["variant"] == reference:
        return ""
    return f"{found['q1']:.2f}{_TO}{found['q3']:.2f}"


def _layer_tables(record: Record) -> Iterator[str]:
    columns = (
        "variant", "forward µs", "/ frozen", "step µs", "/ frozen",
        "quartiles of the step's ratio",
    )  # fmt: skip

    def group(timing: Record) -> tuple[str, str]:
        return case_text(timing["case"]), timing["mode"]

    modes = {timing["mode"] for timing in record["timings"]}
    for (case, mode), timings in groupby(record["timings"], key=group):
        found = {(timing["variant"], timing["pass"]): timing for timing in timings}
        rows = []
        for variant in dict.fromkeys(variant for variant, _ in found):
            forward, step = found.get((variant, "forward")), found.get((variant, "step"))
            rows.append(
                (
                    _name(variant),
                    _micro(forward),
                    _ratio(forward, "base"),
                    _micro(step),
                    _ratio(step, "base"),
                    _quartiles(step, "base"),
                )
            )
        yield _table(case if len(modes) == 1 else f"{case}: {_CLOCKS[mode]}", columns, rows)
    # Beside times, memory would repeat the same cases; it has a file of its own on a GPU.
    if not record["timings"]:
        yield from _memory_tables(record)


_CLOCKS = {"graph": "device time", "eager": "wall time"}


def _memory_tables(record: Record) -> Iterator[str]:
    columns = ("variant", "saved MiB", "peak MiB", "peak over the frozen layer's MiB")
    for case, group in groupby(record["memory"], key=lambda entry: case_text(entry["case"])):
        entries = list(group)
        base = next((e["peak_bytes"] for e in entries if e["variant"] == "base"), None)
        rows = []
        for entry in entries:
            peak = entry["peak_bytes"]
            over = peak - base if peak is not None and base is not None else None
            cells = (entry["saved_bytes"], peak, over)
            rows.append((_name(entry["variant"]), *map(mebibytes, cells)))
        yield _table(case, columns, rows)


def _kernels_tables(record: Record) -> Iterator[str]:
    columns = (
        "step", "path", "µs", "MB", "GB/s", "of a copy", "TFLOP/s", "of a square product",
        "of the floor",
    )  # fmt: skip
    best = {case_text(entry["case"]): entry for entry in record["yardsticks"]}
    for case, timings in groupby(record["timings"], key=lambda timing: case_text(timing["case"])):
        rows = []
        for timing in timings:
            multiplies = timing["flop"] > 0
            rows.append(
                (
                    timing["variant"],
                    _name(timing["path"]),
                    _micro(timing),
                    f"{timing['bytes_moved'] * 1e-6:.1f}",
                    f"{timing['gb_per_s']:,.0f}",
                    f"{timing['share_of_copy']['median']:.2f}",
                    f"{timing['tflop_per_s']:.1f}" if multiplies else "",
                    f"{timing['share_of_matrix_rate']['median']:.2f}" if multiplies else "",
                    f"{timing['share_of_floor']['median']:.2f}",
                )
            )
        title = (
            f"{case}; long copy {best[case]['long_copy']['gb_per_s']:,.0f} GB/s, square product "
            f"{best[case]['square_product']['tflop_per_s']:,.3g} TFLOP/s"
        )
        yield _table(title, columns, rows, text=2)


def _model_tables(record: Record) -> Iterator[str]:
    columns = (
        "variant", "step ms", "tokens/s", "/ frozen", "activations GiB", "over frozen GiB",
        "peak GiB", "quartiles of the ratio",
    )  # fmt: skip
    memory = {(model_case_text(m["case"]), m["variant"]): m for m in record["memory"]}

    def group(timing: Record) -> tuple[str, str]:
        return model_case_text(timing["case"]), timing["pass"]

    for (case, pass_name), timings in groupby(record["timings"], key=group):
        frozen = memory.get((case, "frozen"), {}).get("activation_bytes")
        rows = []
        for timing in timings:
            found = memory[case, timing["variant"]]
            kept = found["activation_bytes"]
            over = kept - frozen if kept is not None and frozen is not None else None
            rows.append(
                (
                    _name(timing["variant"]),
                    f"{timing['seconds']['median'] * 1e3:.1f}",
                    f"{timing['tokens_per_s']:,.0f}",
                    _ratio(timing, "frozen"),
                    gibibytes(kept),
                    gibibytes(over),
                    gibibytes(found["peak_bytes"]),
                    _quartiles(timing, "frozen"),
                )
            )
        yield _table(case if pass_name == "step" else f"{case}: {pass_name}", columns, rows)


def _host_tables(record: Record) -> Iterator[str]:
    passes = tuple(dict.fromkeys(timing["pass"] for timing in record["timings"]))
    columns = ("variant", *(name for p in passes for name in (f"{p} µs", "/ frozen")))
    for case, timings in groupby(record["timings"], key=lambda timing: case_text(timing["case"])):
        found = {(timing["variant"], timing["pass"]): timing for timing in timings}
        rows = []
        for variant in dict.fromkeys(variant for variant, _ in found):
            cells = [_name(variant)]
            for pass_name in passes:
                timing = found.get((variant, pass_name))
                cells += [_micro(timing), _ratio(timing, "base")]
            rows.append(cells)
        yield _table(case, columns, rows)


def _merge_tables(record: Record) -> Iterator[str]:
    columns = ("operation", "clock", "µs", "GB/s", "share of copy", "quartiles")
    for case, timings in timings_by_weight(record):
        rows = []
        for timing in timings:
            share = timing["share_of_copy"]
            rows.append(
                (
                    timing["variant"],
                    {"graph": "device", "eager": "wall"}[timing["mode"]],
                    _micro(timing),
                    f"{timing['gb_per_s']:,.0f}",
                    f"{share['median']:.2f}",
                    f"{share['q1']:.2f}{_TO}{share['q3']:.2f}",
                )
            )
        title = (
            f"Weight {case['out_features']}{_TIMES}{case['in_features']}, {case['dtype']}, "
            f"r {case['rank']}, k {case['grid']}"
        )
        yield _table(title, columns, rows, text=2)


_SUITES: dict[str, Callable[[Record], Iterator[str]]] = {
    "layer": _layer_tables,
    "kernels": _kernels_tables,
    "model": _model_tables,
    "host": _host_tables,
    "merge": _merge_tables,
}
