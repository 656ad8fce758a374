"""merge_checkpoint: what comes out equals the adapted model."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_on_disk import (
    adapted,
    contents,
    gpt2,
    llama,
    load,
    logits,
    save_adapter,
    save_base,
    shake,
    shards,
    tensors,
    workspace,
)
from peft import GraloraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

import gralora
from gralora.adapters.stored import read_adapter
from gralora.checkpoints.merge import Progress, merge_checkpoint

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hybrid": {"hybrid_r": 4},
    "rectangular": {"k": (2, 4)},
    "patterns": {"rank_pattern": {"v_proj": 4}, "use_rslora": True},
    "all layers": {"target_modules": "all-linear"},
    "trained biases": {"bias": "all"},
    "the head and the norm saved whole": {"modules_to_save": ["lm_head", "model.norm"]},
    "the head": {"target_modules": ["lm_head"]},
}


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_gives_the_adapted_ones_logits(case: str, tmp_path: Path) -> None:
    model = llama(attention_bias=True)
    base = save_base(model, tmp_path / "base")
    assert len(shards(base)) > 3
    with_adapter = adapted(model, **CASES[case])
    merge_checkpoint(base, save_adapter(with_adapter, tmp_path / "adapter"), tmp_path / "out")
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(with_adapter))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_those_of_merging_in_memory_to_the_bit(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = llama(dtype)
    base = save_base(model, tmp_path / "base")
    with_adapter = adapted(model, hybrid_r=2)
    merge_checkpoint(base, save_adapter(with_adapter, tmp_path / "adapter"), tmp_path / "out")
    in_memory = gralora.merge_and_unload(with_adapter).state_dict()
    merged = tensors(tmp_path / "out")
    assert merged.keys() == in_memory.keys()
    for key, value in merged.items():
        assert torch.equal(value, in_memory[key]), key


def test_every_device_gives_the_same_but_for_rounding(
    kernel_device: torch.device, tmp_path: Path
) -> None:
    model = llama(torch.bfloat16)
    base = save_base(model, tmp_path / "base")
    one = save_adapter(adapted(model, 2), tmp_path / "one")
    two = save_adapter(adapted(model, 3, k=(2, 4)), tmp_path / "two")
    for name, adapters in (("single", [one]), ("several", [(one, 0.5), (two, 2.0)])):
        merge_checkpoint(base, adapters, tmp_path / name, device=kernel_device)
        merge_checkpoint(base, adapters, tmp_path / f"{name} on the CPU")
        wanted = tensors(tmp_path / f"{name} on the CPU")
        for key, value in tensors(tmp_path / name).items():
            torch.testing.assert_close(value, wanted[key], rtol=2.0**-7, atol=1e-5)


def test_what_is_not_adapted_keeps_its_bytes(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    adapter = save_adapter(adapted(model), tmp_path / "adapter")
    report = merge_checkpoint(base, adapter, tmp_path / "out")
    before, after = tensors(base), tensors(tmp_path / "out")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{name}.weight" for name in read_adapter(adapter).layers}
    assert report.layers == len(changed) == 6


def test_config_tokenizer_and_index_go_along(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    merge_checkpoint(base, save_adapter(adapted(model), tmp_path / "adapter"), tmp_path / "out")
    before, after = contents(base), contents(tmp_path / "out")
    assert after.keys() - before.keys() == {"gralora_merge.json"}
    assert before.keys() <= after.keys()
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert after[name] == before[name]


def test_a_model_of_one_file_stays_one(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base", "1GB")
    with_adapter = adapted(model)
    merge_checkpoint(base, save_adapter(with_adapter, tmp_path / "adapter"), tmp_path / "out")
    assert [path.name for path in shards(tmp_path / "out")] == ["model.safetensors"]
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(with_adapter))


def _delta(adapter: Path, module: str) -> torch.Tensor:
    return read_adapter(adapter).layers[module].delta(torch.float64)


def test_several_adapters_are_added_with_their_weights_and_rounded_once(tmp_path: Path) -> None:
    model = llama(torch.bfloat16)
    base = save_base(model, tmp_path / "base")
    one = save_adapter(adapted(model, 2), tmp_path / "one")
    two = save_adapter(adapted(model, 3, k=4, hybrid_r=2), tmp_path / "two")
    merge_checkpoint(base, [(one, 0.75), (two, -0.5)], tmp_path / "out")
    before, after = tensors(base), tensors(tmp_path / "out")
    for module in read_adapter(one).layers:
        key = f"{module}.weight"
        exact = before[key].double() + 0.75 * _delta(one, module) - 0.5 * _delta(two, module)
        # Half a unit in the last place of bfloat16, and what summing in float32 adds.
        limit = exact.abs() * 2.0**-8 * 1.001 + 1e-6
        assert bool(((after[key].double() - exact).abs() <= limit).all()), module


def test_weights_of_saved_modules_scale_the_change(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    one = save_adapter(adapted(model, 2, modules_to_save=["model.norm"]), tmp_path / "one")
    two = save_adapter(adapted(model, 3, modules_to_save=["model.norm"]), tmp_path / "two")
    merge_checkpoint(base, [(one, 0.5), (two, 2.0)], tmp_path / "out")
    key = "model.norm.weight"
    start = tensors(base)[key].double()
    wanted = start + 0.5 * (read_adapter(one).saved[key].double() - start)
    wanted += 2.0 * (read_adapter(two).saved[key].double() - start)
    torch.testing.assert_close(tensors(tmp_path / "out")[key].double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtype_converts_every_floating_tensor_and_the_config(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = llama(torch.float16)
    base = save_base(model, tmp_path / "base")
    adapter = save_adapter(adapted(model), tmp_path / "adapter")
    merge_checkpoint(base, adapter, tmp_path / "out", dtype=dtype)
    merged = tensors(tmp_path / "out")
    assert {value.dtype for value in merged.values()} == {dtype}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    named = config.get("dtype", config.get("torch_dtype"))
    assert named == str(dtype).removeprefix("torch.")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in merged.values())
    assert load(tmp_path / "out", dtype) is not None


def test_another_dtype_is_rounded_to_once(tmp_path: Path) -> None:
    model = llama(torch.float32)
    base = save_base(model, tmp_path / "base")
    adapter = save_adapter(adapted(model), tmp_path / "adapter")
    merge_checkpoint(base, adapter, tmp_path / "exact")
    merge_checkpoint(base, adapter, tmp_path / "rounded", dtype=torch.bfloat16)
    exact, rounded = tensors(tmp_path / "exact"), tensors(tmp_path / "rounded")
    for key, value in exact.items():
        assert torch.equal(value.bfloat16(), rounded[key]), key


def test_conv1d_weights_are_merged_transposed(tmp_path: Path) -> None:
    model = gpt2()
    base = save_base(model, tmp_path / "base", "30KB")
    with_adapter = adapted(model, target_modules=["c_attn", "c_proj", "c_fc"])
    merge_checkpoint(base, save_adapter(with_adapter, tmp_path / "adapter"), tmp_path / "out")
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(with_adapter))


def test_a_checkpoint_without_the_models_prefix_fits(tmp_path: Path) -> None:
    model = gpt2()
    base = save_base(model.transformer, tmp_path / "base", "30KB")
    assert "h.0.attn.c_attn.weight" in tensors(base)
    with_adapter = adapted(model, target_modules=["c_attn", "c_proj"])
    adapter = save_adapter(with_adapter, tmp_path / "adapter")
    report = merge_checkpoint(base, adapter, tmp_path / "out")
    assert report.renamed == (("transformer.", ""),)
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(with_adapter))


def test_a_tied_pair_that_was_saved_as_one_stays_tied(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    base = save_base(model, tmp_path / "base")
    with_adapter = adapted(model, modules_to_save=["lm_head"])
    adapter = save_adapter(with_adapter, tmp_path / "adapter")
    assert set(read_adapter(adapter).saved) == {"lm_head.weight", "model.embed_tokens.weight"}
    report = merge_checkpoint(base, adapter, tmp_path / "out")
    assert (report.untied, report.added) == (False, ())
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(with_adapter))


def test_a_head_that_was_trained_apart_from_its_embedding_is_untied(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    base = save_base(model, tmp_path / "base")
    theirs = _peft_adapter(model, tmp_path / "adapter", modules_to_save=["lm_head"])
    report = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert (report.untied, report.added) == (True, ("lm_head.weight",))
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(theirs))


def test_progress_ends_at_the_size_of_the_base(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    seen: list[Progress] = []
    adapter = save_adapter(adapted(model), tmp_path / "adapter")
    merge_checkpoint(base, adapter, tmp_path / "out", progress=seen.append)
    size = sum(path.stat().st_size for path in shards(base))
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, size, size)
    assert (seen[-1].position, seen[-1].shards) == (len(shards(base)), len(shards(base)))


def test_equal_inputs_give_equal_files(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    adapter = save_adapter(adapted(model), tmp_path / "adapter")
    for name in ("one", "two"):
        merge_checkpoint(base, adapter, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_nothing_but_the_result_remains(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    before = contents(base)
    adapter = save_adapter(adapted(model), tmp_path / "adapter")
    merge_checkpoint(base, adapter, tmp_path / "out")
    assert not workspace(tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]
    assert contents(base) == before


def test_an_empty_folder_may_be_there_already(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    adapter = save_adapter(adapted(model), tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge_checkpoint(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_a_head_that_the_base_lacks_is_added(tmp_path: Path) -> None:
    base = save_base(llama(num_labels=3), tmp_path / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    with_adapter = adapted(classifier, task_type="SEQ_CLS")
    adapter = save_adapter(with_adapter, tmp_path / "adapter")
    report = merge_checkpoint(base, adapter, tmp_path / "out")
    assert report.added == ("score.weight",)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3)
    torch.testing.assert_close(logits(again.eval()), logits(with_adapter))


def _peft_adapter(model: Any, directory: Path, **settings: Any) -> Any:
    config = GraloraConfig(
        r=8, gralora_k=2, alpha=16, hybrid_r=2, target_modules=["q_proj"], **settings
    )
    theirs = get_peft_model(copy.deepcopy(model), config)
    shake(theirs, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(directory)
    return theirs.eval()


def test_adapters_of_peft_fit(tmp_path: Path) -> None:
    model = llama()
    base = save_base(model, tmp_path / "base")
    theirs = _peft_adapter(model, tmp_path / "adapter")
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(theirs))
