"""A pretrained model: SmolLM2-135M, saved in several shards, adapted, merged on disk.

Runs where examples/finetune.py has fetched the model before.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_on_disk import adapted, load, save_adapter, save_base, shards

from gralora.checkpoints.merge import merge_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """The model in float32."""
    pytest.importorskip("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import smollm2

        weights = smollm2.default_cache() / Path(smollm2.MEMBER).name
        if not weights.is_file():
            pytest.skip(f"{weights.name} is not there (python examples/finetune.py fetches it)")
        yield smollm2.load(smollm2.fetch(weights.parent), torch.device("cpu"), torch.float32)[0]
    sys.modules.pop("smollm2", None)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied afterwards: the model takes half a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_merged_logits_are_the_adapted_models(model: Any, folder: Path) -> None:
    base = save_base(model, folder / "base", "150MB")
    assert len(shards(base)) >= 4
    with_adapter = adapted(model, r=32, k=4, target_modules="all-linear")
    adapter = save_adapter(with_adapter, folder / "adapter")
    report = merge_checkpoint(base, adapter, folder / "out")
    assert report.layers == 210
    ids = torch.tensor([[504, 3575, 282, 4649, 314, 7042, 28, 284]])
    with torch.no_grad():
        wanted, plain = with_adapter.eval()(ids).logits, model.eval()(ids).logits
        merged = load(folder / "out")(ids).logits
    change = (wanted - plain).norm()
    assert change > 0.1 * plain.norm()
    assert (merged - wanted).norm() < 1e-4 * change
