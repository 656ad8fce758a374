"""A GraLoRA layer as a LoRA: placed exactly, and by PEFT's singular value decomposition.

    python benchmarks/export_lora.py --json benchmarks/results/lora/cpu_export.json

Times are CPU seconds of the process, all threads together, from an adapter that is in a folder
(gralora) or in a model in memory (PEFT) to the LoRA's files. Errors are Frobenius norms relative to
that of ΔW, which an einsum computes from the adapter's factors in float64.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import installed
import torch
from peft import GraloraConfig, get_peft_model, save_as_lora
from safetensors.torch import load_file
from torch import Tensor, nn

from gralora import reference
from gralora.adapters.export_lora import export_lora
from gralora.bench.environment import environment, write_json

_SIZES = ((1024, 1024), (2048, 2048), (4096, 1024))
_ENERGY = 0.99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the record to this file")
    options = parser.parse_args()
    found = environment(torch.device("cpu"), sys.orig_argv[1:], installed.ROOT)
    rows = [
        row
        for out_features, in_features in _SIZES
        for row in _measure(out_features, in_features, options.r, options.k, options.rounds)
    ]
    for row in rows:
        print(
            f"{row['out_features']} x {row['in_features']}  {row['way']:<22} rank {row['rank']:>4}"
            f"  {row['cpu_seconds']:>9.3f} s  error {row['error']:.1e}"
        )
    record = {
        "suite": "export_lora",
        "environment": found,
        "settings": {"r": options.r, "k": options.k, "rounds": options.rounds},
        "rows": rows,
    }
    if options.json is not None:
        write_json(options.json, record)


def _measure(
    out_features: int, in_features: int, r: int, k: int, rounds: int
) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    config = GraloraConfig(r=r, gralora_k=k, alpha=2 * r, target_modules=["0"], init_weights=False)
    base = nn.Sequential(nn.Linear(in_features, out_features, bias=False))
    model = get_peft_model(base, config)
    factors = {
        name.split(".")[-2]: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    expected = reference.delta_weight(
        factors["gralora_A"].double(), factors["gralora_B"].double(), scaling=2.0
    )
    with tempfile.TemporaryDirectory() as folder:
        adapter, out = Path(folder, "adapter"), Path(folder, "lora")
        model.save_pretrained(adapter)
        ways: dict[str, Callable[[], object]] = {
            "gralora export-lora": lambda: export_lora(adapter, out, overwrite=True),
            "PEFT, rank k*r": lambda: save_as_lora(out, model, rank=k * r),
            "PEFT, rank r": lambda: save_as_lora(out, model, rank=r),
            f"PEFT, {_ENERGY:.0%} energy": lambda: save_as_lora(out, model, rank=_ENERGY),
        }
        for way, call in ways.items():
            times = [_cpu_seconds(call) for _ in range(rounds)]
            lora_A, lora_B = _written(out)
            yield {
                "out_features": out_features,
                "in_features": in_features,
                "way": way,
                "rank": lora_A.shape[0],
                "cpu_seconds": sorted(times)[rounds // 2],
                "all_cpu_seconds": times,
                "error": float((lora_B @ lora_A - expected).norm() / expected.norm()),
            }


def _cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    return time.process_time() - start


def _written(folder: Path) -> tuple[Tensor, Tensor]:
    """``(lora_A, lora_B)`` in float64; the scale of both ways is 1."""
    tensors = load_file(folder / "adapter_model.safetensors")
    (lora_A,) = (value for key, value in tensors.items() if "lora_A" in key)
    (lora_B,) = (value for key, value in tensors.items() if "lora_B" in key)
    return lora_A.double(), lora_B.double()


if __name__ == "__main__":
    main()
