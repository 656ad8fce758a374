"""Plain LoRAs as adapters: the same numbers, trainable, and refusals of what is no plain LoRA."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import Q0, change_all, edit_config, llama, logits
from loose_layers import dense
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import gralora
from gralora.adapters.export_lora import export_lora
from gralora.adapters.import_lora import import_lora
from gralora.adapters.stored import read_adapter

LORAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every layer": {"target_modules": "all-linear"},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 7},
    "ranks and alphas of single layers": {
        "rank_pattern": {"v_proj": 3, Q0: 6},
        "alpha_pattern": {"0.self_attn.v_proj": 5, "q_proj": 9},
    },
    "biases of adapted layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "dropout": {"lora_dropout": 0.1},
}


def _base() -> nn.Module:
    return llama(attention_bias=True).double()


def _lora(directory: Path, base: nn.Module | None = None, **settings: Any) -> PeftModel:
    """PEFT's model with a trained LoRA, which is saved in `directory`."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], **settings}
    )
    base = _base() if base is None else base
    model = get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    change_all(model, 3, trainable_only=True, scale=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return model.eval()


@pytest.mark.filterwarnings("ignore:write_adapter")
@pytest.mark.parametrize("case", LORAS)
@pytest.mark.parametrize("k", [4, (1, 2)], ids=str)
def test_logits_are_those_of_the_lora(case: str, k: Any, tmp_path: Path) -> None:
    expected = logits(_lora(tmp_path / "lora", **LORAS[case]))
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=k)
    model = gralora.load_adapter(_base(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(model), expected, rtol=1e-11, atol=1e-11)
    assert (logits(_base()) - expected).abs().max() > 1e-3


def test_peft_loads_the_result_as_gralora(tmp_path: Path) -> None:
    expected = logits(_lora(tmp_path / "lora"))
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)
    model = PeftModel.from_pretrained(_base(), tmp_path / "adapter").double().eval()
    assert model.peft_config["default"].peft_type == "GRALORA"
    torch.testing.assert_close(logits(model), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:write_adapter")
@pytest.mark.parametrize("k", [1, 2, (4, 2)], ids=str)
def test_every_number_is_copied(k: Any, tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    result = import_lora(tmp_path / "lora", tmp_path / "adapter", k=k)
    layer = read_adapter(tmp_path / "adapter").layers[Q0]
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    lora_A, lora_B = (factors[f"base_model.model.{Q0}.lora_{part}.weight"] for part in "AB")
    k_out, k_in = (k, k) if isinstance(k, int) else k
    assert (layer.spec.r, layer.spec.s) == (4 * k_in, 4)
    assert (result.ranks[Q0], result.specs[Q0]) == (4, layer.spec)
    assert layer.A.unique().tolist() == lora_A.unique().tolist()
    assert layer.B.unique().tolist() == lora_B.unique().tolist()
    assert (layer.A.numel(), layer.B.numel()) == (k_out * lora_A.numel(), k_in * lora_B.numel())
    torch.testing.assert_close(dense(layer), 3 * lora_B @ lora_A, rtol=1e-14, atol=1e-14)


def test_first_step_of_training_makes_the_blocks_differ(tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)
    model = gralora.load_adapter(_base(), tmp_path / "adapter")
    layer = model.get_submodule(Q0)
    A = layer.gralora_A["default"]
    assert torch.equal(A[:, :, :4], A[:, :, 4:])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.arange(20).reshape(2, 10)).logits.square().sum().backward()
    optimizer.step()
    assert (A[:, :, :4] - A[:, :, 4:]).abs().max() > 1e-6


@pytest.mark.parametrize("k", [1, 2, 4])
def test_lora_of_an_imported_lora_has_the_same_logits(k: int, tmp_path: Path) -> None:
    expected = logits(_lora(tmp_path / "lora"))
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=k)
    result = export_lora(tmp_path / "adapter", tmp_path / "again")
    assert result.rank == 4 * k * k
    model = PeftModel.from_pretrained(_base(), tmp_path / "again", autocast_adapter_dtype=False)
    torch.testing.assert_close(logits(model.eval()), expected, rtol=1e-11, atol=1e-11)


def test_adapter_exported_and_imported_has_the_same_logits(tmp_path: Path) -> None:
    from adapters_on_disk import our_adapter

    expected = logits(our_adapter(tmp_path / "adapter", _base(), r=4, k=2, hybrid_r=1))
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    import_lora(tmp_path / "lora", tmp_path / "again", k=2)
    model = gralora.load_adapter(_base(), tmp_path / "again").eval()
    torch.testing.assert_close(logits(model), expected, rtol=1e-11, atol=1e-11)


VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, r"got use_dora \(DoRA scales the rows"),
    "LoRA with biases": ({"lora_bias": True}, r"got lora_bias \("),
    "rows of the embedding": ({"trainable_token_indices": [1, 2]}, "got trainable_token_indices"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "got init_lora_weights='pissa', which replaced"),
    "OLoRA": ({"init_lora_weights": "olora"}, "got init_lora_weights='olora', which replaced"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "lora_A or lora_B of a linear layer"),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_variants_of_lora_are_refused(case: str, tmp_path: Path) -> None:
    settings, message = VARIANTS[case]
    _lora(tmp_path / "lora", llama(), **settings)
    with pytest.raises(ValueError, match=message):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    "field",
    [
        *("use_qalora", "alora_invocation_tokens", "arrow_config", "layer_replication"),
        *("use_bdlora", "kasa_config", "loftq_config"),
    ],
)
def test_fields_of_variants_are_refused(field: str, tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    edit_config(tmp_path / "lora", **{field: [1]})
    with pytest.raises(ValueError, match=f"the adapter must be plain LoRA, got {field} "):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)


# What each way of starting that PEFT names does to the base's weights.
LEAVES_THE_BASE = {
    "gaussian": True,
    "eva": True,
    "orthogonal": True,
    "mica": True,
    "olora": False,
    "pissa": False,
    "pissa_niter_[number of iters]": False,
    "corda": False,
    "loftq": False,
}
# These need data or more settings to start.
NOT_STARTED_HERE = {"eva", "corda", "loftq"}


def _pefts_starts() -> list[str]:
    (field,) = (f for f in dataclasses.fields(LoraConfig) if f.name == "init_lora_weights")
    kind = typing.get_type_hints(LoraConfig)[field.name]
    return [name for part in typing.get_args(kind) for name in typing.get_args(part)]


@pytest.mark.parametrize("start", _pefts_starts())
def test_starts_that_peft_names_are_taken_where_they_leave_the_base(
    start: str, tmp_path: Path
) -> None:
    _lora(tmp_path / "lora")
    name = start.replace("[number of iters]", "4")
    edit_config(tmp_path / "lora", init_lora_weights=name)
    if LEAVES_THE_BASE[start]:
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)
    else:
        with pytest.raises(ValueError, match=f"got init_lora_weights='{name}', which replaced"):
            import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)


@pytest.mark.parametrize("start", sorted(set(_pefts_starts()) - NOT_STARTED_HERE))
def test_starts_do_to_the_base_what_is_said_here(start: str) -> None:
    base = llama()
    before = base.get_submodule(Q0).weight.detach().clone()
    name = start.replace("[number of iters]", "4")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=name)
    model = get_peft_model(base, config).base_model.model
    after = model.get_submodule(Q0).base_layer.weight
    assert torch.equal(before, after) is LEAVES_THE_BASE[start]


@pytest.mark.parametrize("start", ["Gaussian", "MiCA", True, False, None], ids=str)
def test_starts_are_taken_as_peft_takes_them(start: Any, tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    edit_config(tmp_path / "lora", init_lora_weights=start)
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)


def test_config_of_another_method_is_refused(tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    edit_config(tmp_path / "lora", peft_type="LOHA")
    with pytest.raises(ValueError, match="peft_type must be 'LORA', got 'LOHA'"):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_expressions_in_patterns_are_never_run(pattern: str, tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    edit_config(tmp_path / "lora", **{pattern: {"(a+)+$": 3}})
    with pytest.raises(ValueError, match=f"keys of {pattern} must be names of layers"):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)


def test_rank_that_the_tensors_do_not_have_is_refused(tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    edit_config(tmp_path / "lora", rank_pattern={Q0: 5})
    with pytest.raises(ValueError, match=r"must have the config's rank 5 .* got \[4, 32\]"):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)


@pytest.mark.parametrize("part", ["A", "B"])
def test_half_a_layer_is_refused(part: str, tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[f"base_model.model.{Q0}.lora_{part}.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"{Q0} must have lora_A and lora_B, got only lora_[AB]"):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)


@pytest.mark.parametrize("k", [3, (2, 3), 0], ids=str)
def test_grids_that_do_not_fit_are_refused(k: Any, tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"import_lora: .*q_proj: .*(divisible|at least 1)"):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=k)
    assert not (tmp_path / "adapter").exists()


def test_own_folder_is_refused(tmp_path: Path) -> None:
    _lora(tmp_path)
    with pytest.raises(ValueError, match="out must be another folder than the LoRA's"):
        import_lora(tmp_path, tmp_path, k=2)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_copies_of_base_weights_are_left_out_with_a_warning(tmp_path: Path) -> None:
    _lora(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    copied = {"base_model.model.model.embed_tokens.weight": torch.zeros(64, 32)}
    save_file(load_file(path) | copied, path)
    with pytest.warns(UserWarning, match=r"left out: .*embed_tokens\.weight"):
        import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)
    assert read_adapter(tmp_path / "adapter").layers.keys() == {
        f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")
    }
