"""Kills a process that saves two adapters in turn, again and again, and loads what it left.

Arguments: folder, number of kills. Prints as JSON how often each adapter was loaded, how many
kills left temporary files behind, and how many came between the two renames; ends with an error
where a load fails or gives a mixture.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records
from gralora.storage.adapter_files import load_adapter, save_adapter
from gralora.storage.state_dict import adapter_state_dict

SETTINGS = {
    "a": GraLoRAConfig(r=8, alpha=16, target_modules=["0"]),
    "b": GraLoRAConfig(r=4, alpha=30, target_modules=["0", "2"]),
}
VALUES = {"a": 1.0, "b": 2.0}


def _base() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))


def _adapter(name: str) -> nn.Module:
    model = inject(_base(), SETTINGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(VALUES[name])
    return model


def _save_until_orphaned(models: list[nn.Module], directory: Path) -> None:
    # Killing the parent must not leave this process behind.
    parent = os.getppid()
    while os.getppid() == parent:
        for model in models:
            save_adapter(model, directory)


def _whole_adapter(tensors: dict[str, Tensor], model: nn.Module) -> str:
    """Name of the adapter that was loaded; an error where it is not wholly one of the two."""
    scales = {spec.scaling for spec in adapter_records(model)["default"].targets.values()}
    values = {float(value) for tensor in tensors.values() for value in tensor.unique()}
    for name, config in SETTINGS.items():
        layers = 2 * len(config.target_modules)
        if scales == {config.alpha / config.r} and values == {VALUES[name]}:
            assert len(tensors) == layers, tensors.keys()
            return name
    raise AssertionError(f"a mixture: scales {scales}, values {values}")


def _kill_once(models: list[nn.Module], directory: Path, chance: random.Random) -> None:
    child = os.fork()
    if child == 0:
        try:
            _save_until_orphaned(models, directory)
        finally:
            os._exit(1)
    try:
        time.sleep(chance.uniform(0.001, 0.03))
        # Who loads while another process saves finds a whole adapter, too.
        model = load_adapter(_base(), directory)
        _whole_adapter(adapter_state_dict(model), model)
        time.sleep(chance.uniform(0, 0.03))
    finally:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the saving process ended by itself: {status}"


def main() -> None:
    torch.set_num_threads(1)
    directory, kills = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(5)
    models = [_adapter(name) for name in SETTINGS]
    save_adapter(models[0], directory)
    loaded, cut_off, between = dict.fromkeys(SETTINGS, 0), 0, 0
    for _ in range(kills):
        _kill_once(models, directory, chance)
        cut_off += any(path.name.endswith(".tmp") for path in directory.iterdir())
        model = load_adapter(_base(), directory)
        name = _whole_adapter(adapter_state_dict(model), model)
        loaded[name] += 1
        config = json.loads((directory / "adapter_config.json").read_text())
        between += config["r"] != SETTINGS[name].r
    print(json.dumps({"loaded": loaded, "cut off": cut_off, "between renames": between}))


if __name__ == "__main__":
    main()
