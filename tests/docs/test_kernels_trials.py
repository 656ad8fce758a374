"""The figures that the page on kernels gives of trials are those of their file."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from docs_readers import ROOT

TEXT = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
FOLDER = ROOT / "benchmarks" / "results" / "trials"
TRIALS = json.loads((FOLDER / "h200_early_products.json").read_text())
COPIES = json.loads((FOLDER / "h200_issued_copies.json").read_text())
SPLITS = json.loads((FOLDER / "h200_descriptors.json").read_text())
SQUARE, NARROW = (4096, 4096, 64), (4096, 1024, 64)

# By the first words of a row: what it compares, and the layer.
ROWS = {
    "the product begins early": ("after", "early", SQUARE),
    "a projection and a product on one": ("early", "beside_5", SQUARE),
    "the same, four stages": ("early", "beside_4", SQUARE),
    "the projection on the clusters": ("early_168", "few_clusters", SQUARE),
    "stages freed at once": ("early_168", "free_at_once", SQUARE),
    "other warps store": ("free_at_once", "others_store", SQUARE),
    "gradients that are ready first": ("others_store", "others_store_ready_first", NARROW),
}
RATIOS = r"([\d.]+) / ([\d.]+)"
LINES = re.findall(
    rf"^\| ([^|]*?) ?\| (\d+) \|[^|]*\| {RATIOS} \| {RATIOS} \|",
    TEXT.split("### Beginning before the latents are there\n")[1],
    re.MULTILINE,
)


def _ratios(
    name: str, tokens: int, layer: tuple[int, int, int], trials: dict[str, Any] = TRIALS
) -> list[str]:
    found = {
        row["pass"]: f"{row['ratio']:.2f}"
        for row in trials[name]
        if (row["in_features"], row["out_features"], row["rank"]) == layer
        and row["tokens"] == tokens
    }
    return [found["forward"], found["step"]]


def test_rows_of_trials_are_those_of_the_file() -> None:
    trial, seen = "", 0
    for title, tokens, *shown in LINES:
        trial = title or trial
        key = next((key for key in ROWS if trial.startswith(key)), None)
        if key is None:
            continue
        before, after, layer = ROWS[key]
        assert shown[:2] == _ratios(before, int(tokens), layer), trial
        assert shown[2:] == _ratios(after, int(tokens), layer), trial
        seen += 1
    assert seen == 11


@pytest.mark.parametrize("key", ROWS)
def test_every_trial_is_on_the_page(key: str) -> None:
    assert f"| {key}" in TEXT


def _cells(heading: str, first: str) -> list[list[str]]:
    """The rows of the table below `heading` whose head begins with the cells `first`."""
    chapter = re.split(rf"^##+ {re.escape(heading)}$", TEXT, flags=re.MULTILINE)[1]
    chapter = re.split(r"^##", chapter, flags=re.MULTILINE)[0]
    table = chapter.split(f"\n| {first} |")[1].split("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def test_cycles_of_the_copying_thread_are_those_of_the_file() -> None:
    keys = ("copier", "waits_for_room", "multiplier", "waits_for_boxes", "waits_for_products")
    of_file = [
        [f"{row['items']}, {row['copies']}", *(str(row[key]) for key in keys)]
        for row in COPIES["walks"]
        if row["tiles"] == "beside"
    ]
    assert of_file == _cells("The thread that asks for boxes", "walk")
    assert of_file


def test_what_an_elected_thread_gains_is_that_of_the_file() -> None:
    rows = _cells("The thread that asks for boxes", "layer")
    assert len(rows) == 8
    for layer, tokens, rank, *shown in rows:
        n, m = map(int, layer.split("→"))
        case = int(tokens), (n, m, int(rank))
        of_file = [" / ".join(_ratios(name, *case, COPIES)) for name in ("before", "elected")]
        assert shown == of_file, layer


def _suite(*path: str) -> dict[tuple[int, ...], list[str]]:
    """A result of the suite `layer`: forward and step of the layer with bf16 adapters."""
    found: dict[tuple[int, ...], dict[str, str]] = {}
    for row in json.loads(FOLDER.parent.joinpath(*path).read_text())["timings"]:
        if row["variant"] != "gralora":
            continue
        case = row["case"]
        key = (case["in_features"], case["out_features"], case["tokens"], case["rank"])
        found.setdefault(key, {})[row["pass"]] = f"{row['ratio']['base']['median']:.2f}"
    return {key: [ratios["forward"], ratios["step"]] for key, ratios in found.items()}


def test_what_descriptors_that_are_sums_gain_is_that_of_the_files() -> None:
    before = {
        (row["in_features"], row["out_features"], row["tokens"], row["rank"]): [
            f"{row['forward']:.2f}", f"{row['step']:.2f}"
        ]
        for row in SPLITS["before"]
    }  # fmt: skip
    after = _suite("trials", "h200_descriptors_layer.json")
    after |= _suite("trials", "h200_descriptors_cold.json")
    rows = _cells("Descriptors that are sums", "layer")
    assert len(rows) == 6
    for layer, tokens, rank, *shown in rows:
        n, m = map(int, layer.split("→"))
        case = (n, m, int(tokens), int(rank))
        assert shown == [" / ".join(before[case]), " / ".join(after[case])], layer


def test_projections_that_are_split_are_those_of_the_file() -> None:
    rows = _cells("Beginning before the latents are there", "kernels of")
    assert len(rows) == 5
    tiles = {"8.0": "64x32", "9.0a": "64x64"}
    for kernels, tokens, rank, *shown in rows:
        trials = [
            row
            for row in SPLITS["portable" if kernels == "8.0" else "bulk"]
            if (row["tokens"], row["rank"]) == (int(tokens), int(rank))
        ]
        for cell, splits in zip(shown, (1, 2, 4), strict=True):
            # As chosen: by the kernel of 9.0a, whole.
            kernel = "9.0a" if splits == 1 else kernels
            found = [
                f"{row['forward']:.2f} / {row['step']:.2f}"
                for row in trials
                if (row["kernel"], row["tile"], row["splits"]) == (kernel, tiles[kernel], splits)
            ]
            assert [cell] == (found or [""]), (kernels, tokens, rank, splits)


def test_passes_with_parts_left_out_are_those_of_the_file() -> None:
    names = {"the frozen layer (cuBLAS)": "frozen layer, cuBLAS", "ours": "nothing"}
    shown = [
        [names.get(name, name.removeprefix("ours without ")), *rest]
        for name, *rest in _cells("What bounds 8192 tokens", "work")
    ]
    of_file = [
        [
            row["without"],
            row["pass"],
            f"{row['sustained_us']:.0f}",
            str(row["nvidia_smi_mhz"]),
            str(row["watts"]),
        ]
        for row in COPIES["left_out"]
        if row["sustained_us"]
    ]
    assert shown == of_file
    assert shown


def _shown(rows: list[dict[str, Any]], **keys: Any) -> str:
    """Forward and step of the only row with these values."""
    (row,) = [row for row in rows if all(row.get(key) == keys[key] for key in keys)]
    return f"{row['forward']:.2f} / {row['step']:.2f}"


def _layer(cell: str) -> dict[str, int]:
    n, m = map(int, cell.split("→"))
    return {"in_features": n, "out_features": m}


def test_what_tiles_that_project_take_is_that_of_the_file() -> None:
    trials = json.loads((FOLDER / "h200_latents_in_tiles.json").read_text())
    section = "Narrow layers: latents in every tile"
    ways = ("in_turns", "held_in_turns", "first", "held_first")
    rows = _cells(section, "layer | tokens | rows in shared memory, in turns")
    assert len(rows) == 3
    for layer, tokens, *shown in rows:
        case = _layer(layer) | {"tokens": int(tokens), "rank": 64, "way": "in_tiles"}
        assert shown == [_shown(trials[way], **case) for way in ways], layer
    rows = _cells(section, "layer | tokens | r")
    assert len(rows) == 9
    for layer, tokens, rank, *shown in rows:
        case = _layer(layer) | {"tokens": int(tokens), "rank": int(rank)}
        of_file = [_shown(trials["first"], **case, way=way) for way in ("without", "in_tiles")]
        assert shown == of_file, (layer, tokens, rank)


def test_what_few_tokens_take_is_that_of_the_file() -> None:
    trials = json.loads((FOLDER / "h200_few_tokens.json").read_text())
    rows = _cells("Few tokens: the weight once", "forward")
    assert len(rows) == 4
    for (forward, backward, *shown), name in zip(
        rows, ("apart", "first", "first", "kept"), strict=True
    ):
        case: dict[str, Any] = {"in_features": 4096, "out_features": 4096}
        if name == "first":
            for way, cell in (("forward", forward), ("backward", backward)):
                tile, splits = cell.split(", ")
                case |= {f"{way}_tile": tile, f"{way}_splits": int(splits)}
        if name == "kept":
            case["way"] = "thin"
        assert shown == [_shown(trials[name], **case, tokens=tokens) for tokens in (1, 16)], forward


def test_projections_in_parts_are_those_of_the_file() -> None:
    trials = json.loads((FOLDER / "h200_projections_in_parts.json").read_text())["in_parts"]
    rows = _cells("Beginning before the latents are there", "forward / step")
    assert len(rows) == 4
    for tokens, rank, *shown in rows:
        case = _layer("4096→4096") | {"tokens": int(tokens.split()[0]), "rank": int(rank)}
        for cell, way in zip(shown, ("without", "most2", "most4", "most8", "split"), strict=True):
            if cell:
                assert cell == _shown(trials, **case, way=way), (tokens, rank, way)


SPANS = json.loads((FOLDER / "h200_gradient_spans.json").read_text())


def test_latents_on_the_way_of_2048_tokens_are_those_of_the_file() -> None:
    rows = _cells("The projection among the tiles", "layer | latents")
    assert len(rows) == 6
    for layer, latents, *shown in rows:
        name = "forward_2048" if layer == "4096→8192" else "forward_2048_again"
        case = _layer(layer) | {"tokens": 2048, "way": latents.replace(" ", "_")}
        found = []
        for rank in (32, 64, 128):
            (row,) = [
                row
                for row in SPANS[name]
                if all(row.get(key) == value for key, value in {**case, "rank": rank}.items())
            ]
            found.append(f"{row['forward']:.3f} / {row['step']:.3f}")
        assert shown == found, (layer, latents)


def test_spans_of_gradients_are_those_of_the_file() -> None:
    rows = _cells("Spans of the tokens", "layer")
    assert len(rows) == 8
    for layer, tokens, rank, *shown in rows:
        case = _layer(layer) | {"tokens": int(tokens), "rank": int(rank)}
        without = "apart" if shown[0].endswith(" (apart)") else "whole"
        for cell, way in zip(shown, (without, "spans2", "spans4", "spans8"), strict=True):
            steps = [
                row["step"]
                for row in SPANS["in_turns"]
                if row["way"] == way and all(row[key] == case[key] for key in case)
            ]
            if cell:
                mean = pytest.approx(sum(steps) / len(steps), abs=6e-4)
                assert float(cell.removesuffix(" (apart)")) == mean, (layer, tokens, rank, way)
