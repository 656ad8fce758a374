"""Files that were changed at random, through every entry that reads files of others.

Each input ends in a clean error or in a result that holds up, and nothing changes on the disk but
the result. GRALORA_FUZZ=10000 tries ten thousand inputs of each entry, others each time, and
GRALORA_FUZZ_RECORD names a JSON file that their counts are added to.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from security_checks import in_time
from security_entries import ENTRIES
from security_files import CONFIG, PREFIX, WIDTH
from security_inputs import changed_files, resized
from security_places import Place
from security_record import add_to_record, started

USUAL = 200
COUNT = int(os.environ.get("GRALORA_FUZZ", USUAL))
RECORD = os.environ.get("GRALORA_FUZZ_RECORD")
FOUND = started(f"GRALORA_FUZZ={COUNT} pytest tests/security/test_fuzz.py") if RECORD else {}
# Of each entry in the usual suite: a slow machine tries fewer inputs, but never less than a part.
SECONDS = 20.0
PART = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The valid files; they are valid again for the next entry."""
    return Place(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How many inputs were refused and taken; printed, for who runs more than usual."""
    counts: Counter[str] = Counter()
    yield counts
    print(f"{counts.total():,} inputs: {counts['refused']:,} refused, {counts['taken']:,} taken")


@pytest.mark.parametrize("entry", ENTRIES)
def test_changed_files_are_refused_or_harmless(
    entry: str, place: Place, tally: Counter[str]
) -> None:
    if COUNT != USUAL:
        _try_many(entry, place, tally, COUNT)
        if RECORD:
            add_to_record(Path(RECORD), entry, tally, FOUND)
        return
    end = time.monotonic() + SECONDS
    for number in range(USUAL // PART):
        _try_many(entry, place, tally, PART, number)
        if time.monotonic() > end:
            break


def _try_many(
    entry: str, place: Place, tally: Counter[str], count: int, number: int | None = None
) -> None:
    """Try that many inputs: the same each time where they have a number."""

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def try_one(data: st.DataObject) -> None:
        tally[_try(entry, place, data)] += 1

    (try_one if number is None else seed(number)(try_one))()


def _try(entry: str, place: Place, data: st.DataObject) -> str:
    adapter = data.draw(st.sampled_from(ENTRIES[entry].adapters))
    place.change(_contents(entry, adapter, place, data))
    before = place.listing()
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = ENTRIES[entry].run(place, data.draw, adapter)
    assert place.listing() == before
    return "taken" if taken else "refused"


def _contents(entry: str, adapter: str, place: Place, data: st.DataObject) -> dict[str, bytes]:
    names = ENTRIES[entry].names(adapter)
    can_grow = adapter in ("plain", "other")
    if can_grow and data.draw(st.sampled_from([True, False, False, False])):
        config = json.loads(place.original(f"{adapter}/{CONFIG}"))
        files = data.draw(resized(config, WIDTH, PREFIX))
        return {f"{adapter}/{name}": content for name, content in files.items()}
    return data.draw(changed_files(place, names))


def test_a_record_keeps_what_every_entry_did(tmp_path: Path) -> None:
    path = tmp_path / "new" / "fuzz.json"
    found = started("pytest -k x")
    for entry, refused in (("merge", 7), ("inspect", 9)):
        add_to_record(path, entry, Counter(refused=refused, taken=10 - refused), found)
    runs = json.loads(path.read_text())["runs"]
    counts = [(run["entry"], run["inputs"], run["refused"], run["accepted"]) for run in runs]
    assert counts == [("merge", 10, 7, 3), ("inspect", 10, 9, 1)]
    for run in runs:
        assert run["environment"]["date"]
        assert run["environment"]["command"] == "pytest -k x"
        assert {"gralora", "torch", "safetensors", "hypothesis"} <= run["environment"][
            "packages"
        ].keys()


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_files_themselves_are_taken(entry: str, place: Place) -> None:
    place.change({})
    for adapter in ENTRIES[entry].adapters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert ENTRIES[entry].run(place, _first, adapter)


def _first(strategy: st.SearchStrategy[str]) -> str:
    """The option that a strategy names first."""
    return strategy.elements[0]  # type: ignore[attr-defined]
