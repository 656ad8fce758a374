"""Adapters swapped from disk under a model that runs, compiled or not."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import TOKENS, edit_config, llama, logits, our_adapter, peft_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import gralora
from gralora.adapters.swapping import load_into


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items()
    )


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hybrid": {"hybrid_r": 2},
    "biases and whole modules": {"bias": "all", "modules_to_save": ["lm_head"]},
    "ranks of single layers": {"rank_pattern": {"v_proj": 4}, "k_pattern": {"v_proj": (2, 4)}},
}


@pytest.mark.parametrize("case", KINDS)
def test_outputs_are_those_of_the_new_adapter(case: str, tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    expected = logits(our_adapter(tmp_path / "new", base, **KINDS[case]))
    model = our_adapter(tmp_path / "old", base, **KINDS[case])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    load_into(model, tmp_path / "new")
    assert torch.equal(logits(model), expected)


def test_another_scale_is_folded_into_the_factors(tmp_path: Path) -> None:
    base = llama().double()
    expected = logits(our_adapter(tmp_path / "new", base, alpha=5, hybrid_r=2))
    model = our_adapter(tmp_path / "old", base, alpha=16, hybrid_r=2)
    load_into(model, tmp_path / "new")
    torch.testing.assert_close(logits(model), expected, rtol=1e-12, atol=1e-12)


def test_adapter_of_peft_is_swapped_in(tmp_path: Path) -> None:
    peft = peft_adapter(tmp_path / "new", alpha=5)
    model = our_adapter(tmp_path / "old")
    load_into(model, tmp_path / "new")
    torch.testing.assert_close(logits(model), logits(peft), rtol=2e-5, atol=2e-5)


def test_parameters_stay_the_same_objects_in_the_same_places(tmp_path: Path) -> None:
    our_adapter(tmp_path / "new", alpha=5)
    model = our_adapter(tmp_path / "old")
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    load_into(model, tmp_path / "new")
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model_does_not_compile_again(backend: str, tmp_path: Path) -> None:
    model = our_adapter(tmp_path / "first", hybrid_r=2)
    for number, alpha in enumerate((5, 16, 0.5)):
        other = our_adapter(tmp_path / str(number), hybrid_r=2, alpha=alpha)
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1 + number)
        gralora.save_adapter(other, tmp_path / str(number))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    outputs = [logits(compiled)]
    compilations = counter.frame_count
    assert compilations > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3):
            load_into(compiled, tmp_path / str(number))
            outputs.append(logits(compiled))
            eager = gralora.load_adapter(llama(), tmp_path / str(number)).eval()
            torch.testing.assert_close(outputs[-1], logits(eager), rtol=2e-5, atol=2e-5)
    assert counter.frame_count == compilations
    assert min(float((a - b).abs().max()) for a, b in itertools.pairwise(outputs)) > 1e-3


def test_compiled_model_of_a_state_dict_does_not_compile_again(tmp_path: Path) -> None:
    model = our_adapter(tmp_path / "first")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    before = logits(compiled)
    compilations = counter.frame_count
    state = {key: 2 * value for key, value in gralora.adapter_state_dict(compiled).items()}
    gralora.load_adapter_state_dict(compiled, state)
    assert (logits(compiled) - before).abs().max() > 1e-3
    assert counter.frame_count == compilations


def test_a_captured_graph_replays_the_new_adapter(tmp_path: Path, cuda: torch.device) -> None:
    base = llama()
    new = our_adapter(tmp_path / "new", base).to(cuda)
    model = our_adapter(tmp_path / "old", base).to(cuda)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()

    def layer_of(adapted: nn.Module) -> nn.Module:
        return adapted.get_submodule("model.layers.0.self_attn.q_proj")

    x = torch.randn(6, layer_of(new).in_features, device=cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        before, expected = layer_of(model)(x), layer_of(new)(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = layer_of(model)(x)
        load_into(model, tmp_path / "new")
        graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, expected)
    assert not torch.allclose(expected, before)


def test_adding_an_adapter_does_compile_again(tmp_path: Path) -> None:
    # The cost that swapping avoids; without it the tests above would say nothing.
    model = our_adapter(tmp_path / "first")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    logits(compiled)
    compilations = counter.frame_count
    gralora.load_adapter(model, tmp_path / "first", "second")
    logits(compiled)
    assert counter.frame_count > compilations


def test_optimizer_goes_on_with_its_state(tmp_path: Path) -> None:
    our_adapter(tmp_path / "new")
    model = our_adapter(tmp_path / "old").train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-2)
    model(TOKENS).logits.square().mean().backward()
    optimizer.step()
    load_into(model, tmp_path / "new")
    assert all(id(p) in {id(q) for q in model.parameters()} for p in optimizer.state)


def test_other_adapters_and_which_acts_stay(tmp_path: Path) -> None:
    our_adapter(tmp_path / "new", alpha=5)
    model = our_adapter(tmp_path / "old")
    gralora.load_adapter(model, tmp_path / "old", "second")
    before, expected = _state(model), logits(model)
    load_into(model, tmp_path / "new", "default")
    after = _state(model)
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed
    assert all(".default" in key for key in changed)
    assert torch.equal(logits(model), expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another rank": ({"r": 4}, r"must have the model's r=8, k=\(2, 2\).* got r=4"),
    "another grid": ({"k": 4}, r"must have the model's .*, got r=8, k=\(4, 4\)"),
    "another plain part": ({"hybrid_r": 2}, "hybrid_r=0, got .* hybrid_r=2"),
    "fewer layers": ({"target_modules": ["q_proj"]}, "got one that lacks model.layers.0"),
    "more layers": ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "that also has .*k_proj"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "unexpected .*lm_head"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapter_that_does_not_fit_changes_nothing(case: str, tmp_path: Path) -> None:
    settings, message = REFUSED[case]
    our_adapter(tmp_path / "new", **settings)
    model = our_adapter(tmp_path / "old")
    before = _state(model)
    with pytest.raises(ValueError, match=message):
        load_into(model, tmp_path / "new")
    assert _same(_state(model), before)


def test_damaged_file_changes_nothing(tmp_path: Path) -> None:
    our_adapter(tmp_path / "new")
    path = tmp_path / "new" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    model = our_adapter(tmp_path / "old")
    before = _state(model)
    with pytest.raises(ValueError, match="is truncated"):
        load_into(model, tmp_path / "new")
    assert _same(_state(model), before)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "new")
    path = tmp_path / "new" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path)
    model = our_adapter(tmp_path / "old")
    with pytest.raises(ValueError, match="must be finite"):
        load_into(model, tmp_path / "new")


def test_adapter_of_another_base_model_is_refused(tmp_path: Path) -> None:
    base = llama()
    # With the output head among the targets, PEFT stores its frozen weight too.
    peft_adapter(tmp_path / "new", base, target_modules=["lm_head"])
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    model = our_adapter(tmp_path / "old", other, target_modules=["lm_head"])
    with pytest.raises(ValueError, match="must equal the model's, got other values"):
        load_into(model, tmp_path / "new")
    model = our_adapter(tmp_path / "old", base, target_modules=["lm_head"])
    load_into(model, tmp_path / "new")


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    model = our_adapter(tmp_path)
    with pytest.raises(
        ValueError, match=r"load_into: no adapter is named 'b' \(present: 'default'"
    ):
        load_into(model, tmp_path, "b")


def test_merged_adapter_is_refused(tmp_path: Path) -> None:
    model = our_adapter(tmp_path)
    for layer in model.modules():
        if isinstance(layer, gralora.nn.GraLoRALinear):
            layer.merge()
    with pytest.raises(RuntimeError, match="is merged into the weight"):
        load_into(model, tmp_path)


def test_config_of_another_method_is_refused(tmp_path: Path) -> None:
    model = our_adapter(tmp_path / "old")
    peft_adapter(tmp_path / "new")
    edit_config(tmp_path / "new", peft_type="LORA")
    with pytest.raises(ValueError, match="peft_type must be"):
        load_into(model, tmp_path / "new")
