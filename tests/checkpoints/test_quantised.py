"""Bases with tensors that nothing can be added to: copied to the byte, refused where targeted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_on_disk import plain_base, tensors
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gralora.adapters.stored import StoredLayer, read_adapter
from gralora.adapters.write import write_adapter
from gralora.checkpoints.merge import merge_checkpoint
from gralora.cli import main
from gralora.nn.spec import make_spec

BLOCK = 128
WIDTH = 256
# Made by transformers' FineGrainedFP8 and in DeepSeek-V3: one float32 for each block of a weight.
QUANTISATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
OTHERS = {
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in blocks of float8, and what each block is to be multiplied by."""
    blocks = weight.reshape(WIDTH // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    return (blocks / scale[:, None, :, None]).reshape(WIDTH, WIDTH).to(torch.float8_e4m3fn), scale


def _values() -> dict[str, Tensor]:
    down, scale = _quantised(torch.randn(WIDTH, WIDTH))
    return {
        "layers.0.up.weight": torch.randn(WIDTH, WIDTH).bfloat16(),
        "layers.0.down.weight": down,
        "layers.0.down.weight_scale_inv": scale,
        "norm.weight": torch.ones(WIDTH).bfloat16(),
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A quantised model of which one layer was left as it was."""
    settings = {"model_type": "deepseek_v3", "quantization_config": QUANTISATION}
    return plain_base(tmp_path / "base", _values(), **settings)


def _adapter(directory: Path, name: str = "layers.0.up", **settings: Any) -> Path:
    spec = make_spec(WIDTH, WIDTH, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    A, B = torch.randn(2, WIDTH // 2, 4), torch.randn(2, 4, WIDTH // 2)
    write_adapter(directory, {name: StoredLayer(spec, A, B)}, **settings)
    return directory


def _bytes(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype as the file names it, shape and bytes of every tensor."""
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        found = {}
        for key in file.keys():  # noqa: SIM118
            view = file.get_slice(key)
            raw = file.get_tensor(key).contiguous().flatten().view(torch.uint8)
            found[key] = (view.get_dtype(), tuple(view.get_shape()), raw.numpy().tobytes())
        return found


def test_float8_weights_and_their_scales_are_copied(base: Path, tmp_path: Path) -> None:
    merge_checkpoint(base, _adapter(tmp_path / "adapter"), tmp_path / "out")
    before, after = _bytes(base), _bytes(tmp_path / "out")
    changed = {key for key in before if before[key] != after[key]}
    assert after["layers.0.down.weight"][0] == "F8_E4M3"
    assert before.keys() == after.keys()
    assert changed == {"layers.0.up.weight"}


def test_a_layer_that_was_not_quantised_is_merged(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter")
    merge_checkpoint(base, adapter, tmp_path / "out")
    delta = read_adapter(adapter).layers["layers.0.up"].delta(torch.float64)
    wanted = tensors(base)["layers.0.up.weight"].double() + delta
    found = tensors(tmp_path / "out")["layers.0.up.weight"]
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-5)


def test_the_config_keeps_its_quantisation(base: Path, tmp_path: Path) -> None:
    merge_checkpoint(base, _adapter(tmp_path / "adapter"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == QUANTISATION


@pytest.mark.parametrize("name", OTHERS)
def test_tensors_of_other_dtypes_are_copied(name: str, tmp_path: Path) -> None:
    strange = torch.arange(64, dtype=torch.uint8).view(OTHERS[name])
    values = {"layers.0.up.weight": torch.randn(WIDTH, WIDTH), "strange": strange}
    base = plain_base(tmp_path / "base", values, model_type="x")
    merge_checkpoint(base, _adapter(tmp_path / "adapter"), tmp_path / "out")
    assert _bytes(tmp_path / "out")["strange"] == _bytes(base)["strange"]
    assert _bytes(base)["strange"][0] == name


def _refused(base: Path, adapter: Path, match: str, **settings: Any) -> None:
    before = sorted(base.parent.rglob("*"))
    with pytest.raises(TypeError, match=match):
        merge_checkpoint(base, adapter, base.parent / "out", **settings)
    assert sorted(base.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8], ids=str
)
def test_an_adapter_of_a_quantised_layer_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    values = {"layers.0.up.weight": torch.zeros(WIDTH, WIDTH).to(dtype)}
    base = plain_base(tmp_path / "base", values, model_type="x")
    match = rf"got layers\.0\.up\.weight with {dtype} \(merge into the model as it was before"
    _refused(base, _adapter(tmp_path / "adapter"), match)


def test_a_module_in_the_place_of_a_float8_weight_is_refused(base: Path, tmp_path: Path) -> None:
    saved = {"layers.0.down.weight": torch.randn(WIDTH, WIDTH)}
    adapter = _adapter(tmp_path / "adapter", saved=saved, modules_to_save=("down",))
    _refused(base, adapter, r"must not be quantised in the base, got layers\.0\.down\.weight")


@pytest.mark.parametrize("sign", ["tensors", "config"])
def test_another_dtype_for_a_quantised_model_is_refused(sign: str, tmp_path: Path) -> None:
    values = _values()
    settings: dict[str, Any] = {"quantization_config": QUANTISATION} if sign == "config" else {}
    if sign == "config":
        values["layers.0.down.weight"] = values["layers.0.down.weight"].view(torch.int8)
    base = plain_base(tmp_path / "base", values, model_type="x", **settings)
    match = r"a quantised model must keep its dtypes, got dtype=torch\.bfloat16 and "
    _refused(base, _adapter(tmp_path / "adapter"), match, dtype=torch.bfloat16)


def test_what_a_quantised_base_lacks_is_added_in_the_dtype_of_its_other_tensors(
    base: Path, tmp_path: Path
) -> None:
    saved = {"score.weight": torch.randn(2, WIDTH)}
    adapter = _adapter(tmp_path / "adapter", saved=saved, modules_to_save=("score",))
    merge_checkpoint(base, adapter, tmp_path / "out")
    assert _bytes(tmp_path / "out")["score.weight"][0] == "BF16"


def test_packed_numbers_are_refused_by_name(tmp_path: Path) -> None:
    packed = torch.zeros(8, 8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    values = {"layers.0.up.weight": torch.randn(WIDTH, WIDTH), "packed": packed}
    base = plain_base(tmp_path / "base", values, model_type="x")
    with pytest.raises(ValueError, match=r"unsupported dtype for 'packed', got 'F4' \(supported: "):
        merge_checkpoint(base, _adapter(tmp_path / "adapter"), tmp_path / "out")


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    values = {"layers.0.up.weight": torch.zeros(WIDTH, WIDTH).to(torch.float8_e4m3fn)}
    base = plain_base(tmp_path / "base", values, model_type="x")
    adapter = _adapter(tmp_path / "adapter")
    result = CliRunner().invoke(main, ["merge", *map(str, (base, adapter, tmp_path / "out"))])
    (line,) = (line for line in result.stderr.splitlines() if line)
    assert result.exit_code == 1
    assert line.startswith("gralora merge: weights to merge into must be floating, of at least 16")


def test_factors_of_float8_are_refused(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        note = file.metadata()
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in values.items()}, path, metadata=note)
    with pytest.raises(ValueError, match=r"unsupported dtype .* got 'F8_E4M3'"):
        read_adapter(adapter)
