"""The entries of the product that read files of others: how to call each, what must come of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import security_oracle as oracle
import torch
from click.testing import CliRunner
from hypothesis import strategies as st
from safetensors import safe_open
from security_checks import check_clean
from security_files import CONFIG, INDEX, SHARDS, TENSORS, Tiny
from security_places import ADAPTERS, OUT, Place

import gralora
from gralora.adapters import load_into, read_adapter
from gralora.adapters.lora_files import read_lora
from gralora.adapters.stored import StoredAdapter, read_with_experts
from gralora.cli import main
from gralora.cli.errors import CommandError

Draw = Callable[[st.SearchStrategy[str]], str]
# Whether the entry took the files.
Run = Callable[[Place, Draw, str], bool]


@dataclass(frozen=True)
class Entry:
    """One of them.

    Attributes:
        run: called with the folder, what draws options, and the adapter's name.
        adapters: that it may be given.
        base: whether it reads a base model too.

    """

    run: Run
    adapters: tuple[str, ...] = ADAPTERS
    base: bool = False

    def names(self, adapter: str) -> list[str]:
        """The files that it reads, by their paths in the folder."""
        files = [f"{adapter}/{CONFIG}", f"{adapter}/{TENSORS}"]
        if self.base:
            files += [f"base/{name}" for name in (*SHARDS, INDEX, INDEX, "config.json")]
        return files


def _command(*arguments: str | Path, whos: tuple[str, ...]) -> bool:
    """Run a command; whether it succeeded. What it refuses, it says in one line."""
    result = CliRunner().invoke(main, list(map(str, arguments)), standalone_mode=False)
    error = result.exception
    if error is None:
        assert result.exit_code == 0
        return True
    if not isinstance(error, CommandError):
        raise error
    assert "\n" not in error.message
    assert error.message.isprintable()
    cause = error.__context__
    assert cause is not None
    check_clean(cause, *whos)
    return False


def _read(place: Place, draw: Draw, name: str) -> bool:
    try:
        adapter = read_adapter(place.root / name, safe=draw(SAFE) == "safe")
    except REFUSALS as error:
        check_clean(error, "read_adapter", named=f"/{name}")
        return False
    assert _found(adapter) == oracle.adapter_names(oracle.read(place.root / name / TENSORS))
    return True


REFUSALS = (ValueError, TypeError, OSError, RuntimeError)
SAFE = st.sampled_from(["safe", "as it is"])


def _found(adapter: StoredAdapter) -> dict[tuple[str, str], oracle.Bits]:
    """What the product read, by module and factor."""
    tensors = {
        (module, factor): getattr(layer, factor)
        for module, layer in adapter.layers.items()
        for factor in ("A", "B", "lora_A", "lora_B")
        if getattr(layer, factor) is not None
    }
    for group in (adapter.biases, adapter.saved, adapter.frozen):
        tensors |= {(name, "whole"): value for name, value in group.items()}
    return {name: oracle.bits(value) for name, value in tensors.items()}


def _facts(model: torch.nn.Module) -> tuple[str, dict[str, oracle.Bits]]:
    return repr(model), {name: oracle.bits(value) for name, value in model.state_dict().items()}


def _load(place: Place, draw: Draw, name: str) -> bool:
    model = Tiny()
    before = _facts(model)
    try:
        gralora.load_adapter(model, place.root / name)
    except REFUSALS as error:
        check_clean(error, "load_adapter", named=f"/{name}")
        assert _facts(model) == before
        return False
    _check_loaded(model, place.root / name)
    return True


def _swap(place: Place, draw: Draw, name: str) -> bool:
    model = gralora.load_adapter(Tiny(), place.pristine(name))
    before = _facts(model)
    try:
        load_into(model, place.root / name)
    except REFUSALS as error:
        check_clean(error, "load_into", "read_adapter", "load_adapter_state_dict")
        assert _facts(model) == before
        return False
    return True


def _check_loaded(model: torch.nn.Module, folder: Path) -> None:
    """The model has the file's numbers, in its own dtype."""
    loaded = gralora.adapter_state_dict(model)
    with safe_open(folder / TENSORS, framework="pt") as file:
        assert set(loaded) <= set(file.keys())
        for key, value in loaded.items():
            stored = file.get_tensor(key).to(value.dtype)
            assert oracle.bits(stored) == oracle.bits(value.detach())


def _inspect(place: Place, draw: Draw, name: str) -> bool:
    options = {"table": (), "json": ("--json",)}[draw(st.sampled_from(["table", "json"]))]
    whos = ("inspect_adapter", "read_adapter")
    return _command("inspect", place.root / name, *options, whos=whos)


def _out(place: Place, taken: bool, check: Callable[[Path], object]) -> bool:
    """Look at what was written, and take it away."""
    out = place.root / OUT
    assert out.exists() == taken
    if taken:
        check(out)
        shutil.rmtree(out)
    return taken


def _export(place: Place, draw: Draw, name: str) -> bool:
    dtype = draw(st.sampled_from(["", "float16"]))
    options = ("--dtype", dtype) if dtype else ()
    whos = ("export_lora", "read_adapter")
    done = _command("export-lora", place.root / name, place.root / OUT, *options, whos=whos)
    return _out(place, done, read_lora)


def _import(place: Place, draw: Draw, name: str) -> bool:
    whos = ("import_lora", "write_adapter")
    k = draw(st.sampled_from(["1", "2", "8"]))
    done = _command("import-lora", place.root / name, place.root / OUT, "--k", k, whos=whos)
    return _out(place, done, read_with_experts)


def _combine(place: Place, draw: Draw, name: str) -> bool:
    pair = [str(place.root / name), str(place.pristine("other"))]
    if draw(st.sampled_from(["first", "last"])) == "last":
        pair.reverse()
    # Its grids are others than those of the second.
    rank = "4" if name == "hybrid" else draw(st.sampled_from(["", "4"]))
    options = ("--rank", rank) if rank else ()
    whos = ("combine", "read_adapter", "write_adapter")
    done = _command("combine", *pair, place.root / OUT, *options, whos=whos)
    return _out(place, done, read_with_experts)


def _convert(place: Place, draw: Draw, name: str) -> bool:
    whos = ("convert", "read_adapter", "write_adapter")
    done = _command("convert", place.root / name, place.root / OUT, whos=whos)
    return _out(place, done, read_adapter)


def _merge(place: Place, draw: Draw, name: str) -> bool:
    dtype = draw(st.sampled_from(["", "", "bfloat16"]))
    options = ("--dtype", dtype) if dtype else ()
    base, out = place.root / "base", place.root / OUT
    whos = ("merge_checkpoint", "read_adapter")
    done = _command("merge", base, place.root / name, out, *options, whos=whos)
    return _out(place, done, lambda folder: _check_merged(base, folder, exact=not dtype))


def _check_merged(base: Path, out: Path, *, exact: bool) -> None:
    """All of the base is there; what no adapter changes is the same to the bit."""
    index = json.loads((base / INDEX).read_text())["weight_map"]
    assert set(index.values()) <= {path.name for path in base.iterdir()}
    for shard in set(index.values()):
        before, after = oracle.read(base / shard), oracle.read(out / shard)
        assert set(before) <= set(after)
        if exact:
            kept = [key for key in before if key.endswith("up.bias")]
            assert all(before[key] == after[key] for key in kept)


ENTRIES = {
    "read_adapter": Entry(_read),
    "load_adapter": Entry(_load),
    "load_into": Entry(_swap),
    "inspect": Entry(_inspect, adapters=(*ADAPTERS, "fused")),
    "export-lora": Entry(_export, adapters=(*ADAPTERS, "fused")),
    "import-lora": Entry(_import, adapters=("lora", "experts")),
    "combine": Entry(_combine, adapters=("other", "fork", "hybrid", "fused")),
    "convert": Entry(_convert, adapters=("fork",)),
    "merge": Entry(_merge, base=True),
}
