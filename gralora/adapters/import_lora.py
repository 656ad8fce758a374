"""import_lora: a plain LoRA as a GraLoRA adapter that computes the same, to train it further."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gralora.adapters.destination import check_out
from gralora.adapters.expert_layers import as_experts
from gralora.adapters.lora_config import WHO
from gralora.adapters.lora_files import LoraLayer, StoredLora, read_lora
from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.nn.spec import AdapterSpec, make_spec
from gralora.storage.scale import bake


@dataclass(frozen=True)
class LoraImport:
    """What :func:`import_lora` wrote.

    Attributes:
        directory: the adapter's folder.
        ranks: of the LoRA, by full module name, and by that of a parameter with fused experts.
        specs: what each layer is now, likewise.

    """

    directory: Path
    ranks: Mapping[str, int]
    specs: Mapping[str, AdapterSpec]


def import_lora(
    lora: str | os.PathLike[str] | StoredLora,
    out: str | os.PathLike[str],
    *,
    k: int | tuple[int, int],
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LoraImport:
    """Write a LoRA of rank r as an adapter with a ``k x k`` grid of rank ``k*r``.

    Cut into a grid, ``ΔW = scaling * lora_B lora_A`` has the blocks

        ΔW_ij = scaling * lora_B[rows of i, :] lora_A[:, columns of j],

    which is a product of rank r; so the adapter whose block (i, j) has exactly these two factors

        A[j, c, (i, q)] = lora_A[q, j*n + c],    B[i, (j, q), o] = lora_B[i*m + o, q]

    with sub-rank ``s = r`` has the same ΔW: every number is copied, none is computed. Its rank is
    ``k_in * s = k*r``. A smaller one does not do for every LoRA: each block of one with factors in
    general position has rank ``min(r, m, n)``, and a block of the grid has at most rank s.

    The copies of lora_A and lora_B in different blocks get different gradients, so training makes
    them differ from its first step on. The adapter has k times as many parameters as the LoRA.
    The scale is the LoRA's, rsLoRA's too: alpha is chosen such that ``alpha / (k*r)`` is it (one
    rounding of a float64 apart where no alpha hits it). A LoRA of fused experts
    (``target_parameters``) is written expert by expert.

    Args:
        lora: its folder, as PEFT writes it, or what :func:`read_lora` gave.
        out: the adapter's folder, absent or empty.
        k: blocks per axis, or ``(k_out, k_in)``.
        overwrite: replace the adapter that `out` holds; never in the folder of a model.
        progress: called with the number of layers done and that of all.

    Raises:
        OSError: files cannot be read or written; `out` holds files.
        TypeError: `k` is no int or pair of them.
        ValueError: as :func:`read_lora`; a layer whose widths k does not divide; `out` is the
            LoRA's own folder.

    Warns:
        UserWarning: PEFT cannot load the result, and why.

    """
    stored = lora if isinstance(lora, StoredLora) else read_lora(lora)
    folder = Path(out)
    if folder.exists() and folder.samefile(stored.directory):
        raise ValueError(f"{WHO}: out must be another folder than the LoRA's, got {folder}")
    check_out(folder, overwrite=overwrite, who=WHO)
    parts = {name: [layer] for name, layer in stored.layers.items()} | {
        name: experts.layers for name, experts in stored.experts.items()
    }
    written = {}
    for done, (name, each) in enumerate(parts.items(), 1):
        written[name] = [_as_granular(name, layer, k, stored.config.dropout) for layer in each]
        if progress is not None:
            progress(done, len(parts))
    write_adapter(
        folder,
        {name: written[name][0] for name in stored.layers},
        experts={name: as_experts(written[name]) for name in stored.experts},
        biases=stored.biases,
        saved=stored.saved,
        modules_to_save=stored.config.modules_to_save,
        bias=stored.config.bias,
        base_model_name_or_path=stored.config.base_model_name_or_path,
        task_type=stored.config.task_type,
    )
    return LoraImport(
        folder,
        {name: each[0].A.shape[0] for name, each in parts.items()},
        {name: each[0].spec for name, each in written.items()},
    )


def _as_granular(
    name: str, layer: LoraLayer, k: int | tuple[int, int], dropout: float
) -> StoredLayer:
    rank, in_features = layer.A.shape
    out_features = layer.B.shape[0]
    # The grid is checked with a rank that fits any, since the real one follows from it.
    k_out, k_in = (k, k) if isinstance(k, int) else k
    r = k_in * rank if isinstance(k_in, int) and k_in > 0 else rank
    spec = make_spec(
        in_features,
        out_features,
        r=r,
        k=(k_out, k_in),
        alpha=bake(layer.scaling, r),
        hybrid_r=0,
        dropout=dropout,
        use_rslora=False,
        who=f"{WHO}: {name}",
    )
    n, m = in_features // k_in, out_features // k_out
    # [r, k_in, n] -> [k_in, n, k_out, r], and [k_out, m, r] -> [k_out, k_in, r, m]
    A = layer.A.reshape(rank, k_in, n).permute(1, 2, 0)
    B = layer.B.reshape(k_out, m, rank).permute(0, 2, 1)
    return StoredLayer(
        spec,
        A.unsqueeze(2).expand(k_in, n, k_out, rank).reshape(k_in, n, k_out * rank),
        B.unsqueeze(1).expand(k_out, k_in, rank, m).reshape(k_out, r, m),
    )
