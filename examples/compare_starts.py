"""Adapters of SmolLM2 that start in different ways: what that costs, and what they start with.

    python examples/compare_starts.py

For each `init_weights`: seconds to inject, the share of the adapted weights (squared Frobenius
norm) that the adapter starts with, and how far outputs move. Writes results/starts.json and prints
it as a table.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import smollm2
import torch
from finetuning import arguments
from finetuning.determinism import prepare
from finetuning.record import environment, write_json
from torch import nn

import gralora

RESULTS = Path(__file__).resolve().parent / "results" / "starts.json"
# Way and grid.
CASES = (
    ("kaiming", 2),
    ("gaussian", 2),
    ("orthogonal", 2),
    ("pissa", 1),
    ("pissa", 2),
    ("pissa", 4),
    ("pissa_niter_4", 2),
)
PROMPT = "def read_lines(path):"


def adapt(model: nn.Module, way: str, k: int, options: argparse.Namespace) -> float:
    """Inject a fresh adapter; return the seconds."""
    config = gralora.GraLoRAConfig(r=options.r, k=k, init_weights=way)
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    gralora.inject(model, config)
    return time.perf_counter() - start


def squared_norm(model: nn.Module) -> float:
    """Of all weights that the adapters are for."""
    layers = [each for each in model.modules() if isinstance(each, gralora.nn.GraLoRALinear)]
    return sum(layer.weight.double().square().sum().item() for layer in layers)


def measure(way: str, k: int, options: argparse.Namespace) -> dict[str, Any]:
    """One way to start; the seconds are the shortest of all rounds."""
    rounds = [measure_once(way, k, options) for _ in range(options.rounds)]
    return min(rounds, key=lambda case: case["inject_seconds"])


@torch.no_grad()
def measure_once(way: str, k: int, options: argparse.Namespace) -> dict[str, Any]:
    """One round, with a model of its own."""
    weights = smollm2.fetch(options.cache)
    model, tokenizer = smollm2.load(weights, torch.device("cpu"), torch.float32)
    ids = torch.tensor(tokenizer(PROMPT).input_ids)[None]
    before = model(ids).logits
    whole = sum(
        value.double().square().sum().item()
        for name, value in model.named_parameters()
        if name.endswith("_proj.weight")
    )
    seconds = adapt(model, way, k, options)
    change = (model(ids).logits - before).abs().max() / before.abs().max()
    return {
        "init_weights": way,
        "k": k,
        "inject_seconds": seconds,
        "taken_share": 1 - squared_norm(model) / whole,
        "largest_change": change.item(),
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of docs/initialisations.md."""
    lines = [
        "| `init_weights` | k | inject | part of the weights | outputs move by |",
        "| --- | --: | --: | --: | --: |",
    ]
    for case in result["cases"]:
        cells = [
            f"`{case['init_weights']}`",
            str(case["k"]),
            f"{case['inject_seconds']:.1f} s",
            f"{case['taken_share']:.1%}",
            f"{case['largest_change']:.0e}" if case["largest_change"] else "0",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-r", type=int, default=16, help="rank, a multiple of 4 (%(default)s)")
    parser.add_argument("--rounds", type=arguments.positive, default=3, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--cache", type=Path, default=smollm2.default_cache(), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measure every way, write and print."""
    options = parse_options()
    device = torch.device("cpu")
    prepare(device, options.seed, deterministic=False)
    cases = []
    for way, k in CASES:
        print(f"{way}, k={k}", flush=True)
        cases.append(measure(way, k, options))
    result = {
        "options": {"r": options.r, "rounds": options.rounds, "seed": options.seed},
        "environment": environment(device),
        "cases": cases,
    }
    write_json(options.out, result)
    print(markdown(result))


if __name__ == "__main__":
    main()
