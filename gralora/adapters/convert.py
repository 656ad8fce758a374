"""convert: an adapter of the method's authors' fork of PEFT as one of PEFT itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gralora.adapters.destination import check_out
from gralora.adapters.kinds import LORA_TYPE, other_ways, with_other_ways
from gralora.adapters.stored import StoredAdapter, read_adapter, read_with_experts
from gralora.adapters.write import why_not_peft, write_adapter
from gralora.nn.spec import AdapterSpec
from gralora.storage.pair import in_folder, open_pair
from gralora.storage.stored_config import EXTENDED_TYPE, PEFT_TYPE

WHO = "convert"
_FORK_FIELD = "gralora_alpha"


@dataclass(frozen=True)
class Converted:
    """What :func:`convert` wrote.

    Attributes:
        directory: the converted adapter's folder.
        total_rank: what the fork calls r.
        spec: what PEFT and this package call it, the same in each layer.
        layers: how many there are.

    """

    directory: Path
    total_rank: int
    spec: AdapterSpec
    layers: int


def convert(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write an adapter of the authors' fork in PEFT's format, number by number.

    Both formats have the same tensors under the same keys. The fork's ``r`` is the total rank, of
    which the granular part has ``r - hybrid_r``, and its scale is ``gralora_alpha / r``; PEFT's
    ``r`` is the granular part's, and its scale ``alpha / (r + hybrid_r)``. The fork's files are
    known by the field ``gralora_alpha``.

    Args:
        adapter: its folder.
        out: another folder, absent or empty.
        overwrite: replace the adapter that `out` holds; never in the folder of a model.
        progress: called with the number of steps done and that of all: reading, writing.

    Raises:
        OSError: files cannot be read or written; `out` holds files.
        ValueError: as :func:`gralora.adapters.stored.read_adapter`; an adapter that is not the
            fork's, with what to do about it; `out` is the adapter's own folder.

    """
    source, folder = Path(adapter), Path(out)
    content = _read_config(source)
    if content.get("peft_type") != PEFT_TYPE or content.get(_FORK_FIELD) is None:
        _refuse(source, content)
    if folder.exists() and folder.samefile(source):
        raise ValueError(f"{WHO}: out must be another folder than the adapter's, got {folder}")
    check_out(folder, overwrite=overwrite, who=WHO)
    advance = progress or (lambda done, of: None)
    stored = read_adapter(source)
    advance(1, 2)
    write_adapter(
        folder,
        stored.layers,
        biases=stored.biases,
        saved=stored.saved,
        modules_to_save=stored.config.modules_to_save,
        bias=stored.config.bias,
        base_model_name_or_path=stored.config.base_model_name_or_path,
        task_type=stored.config.task_type,
    )
    advance(2, 2)
    spec = next(iter(stored.layers.values())).spec
    return Converted(folder, spec.r + spec.hybrid_r, spec, len(stored.layers))


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        with open_pair(folder) as pair:
            return pair.content
    except (OSError, ValueError) as error:
        raise with_other_ways(in_folder(error, folder, who=WHO), folder) from None


def _refuse(folder: Path, content: Mapping[str, Any]) -> NoReturn:
    kind = content.get("peft_type")
    if kind == PEFT_TYPE:
        why = f"{folder} is PEFT's already: both PEFT and gralora.load_adapter load it as it is"
    elif kind == EXTENDED_TYPE:
        why = (
            f"{folder} is an extension of PEFT's format ({EXTENDED_TYPE}), which PEFT cannot load, "
            f"since {_reason(read_with_experts(folder))}; gralora.load_adapter loads it, and "
            "gralora export-lora writes it as a LoRA that PEFT loads"
        )
    elif kind == LORA_TYPE:
        why = f"{folder} is a LoRA; {other_ways(folder)}"
    else:
        why = f"peft_type of {folder} is {kind!r:.50}"
    raise ValueError(
        f"{WHO}: the adapter must be one of the authors' fork, with {_FORK_FIELD} in its config; "
        f"{why}"
    )


def _reason(stored: StoredAdapter) -> str:
    specs = {name: layer.spec for name, layer in stored.layers.items()}
    return why_not_peft(specs, stored.experts) or "it adapts layers that PEFT's GraLoRA does not"
