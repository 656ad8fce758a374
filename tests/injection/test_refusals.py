"""What inject refuses: by a clear text, and with nothing changed."""

from __future__ import annotations

import pytest
import torch
from injection_models import Stack, llama, llama_classifier, snapshot
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.nn import GraLoRALinear


def refused(model, config, error, text, name="default", **options):
    before = snapshot(model)
    with pytest.raises(error, match=f"^inject: .*{text}"):
        inject(model, config, name, **options)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        pytest.param(
            ["embed_tokens", "q_proj"], "model.embed_tokens, a .*Embedding", id="embedding"
        ),
        pytest.param(["self_attn"], "model.layers.0.self_attn, a .*LlamaAttention", id="container"),
        pytest.param(r".*layers\.1.*", "model.layers.1, a .*LlamaDecoderLayer", id="expression"),
    ],
)
def test_target_that_is_no_linear_layer(model, targets, named):
    text = f"another module with in_features, out_features and a forward, got {named}"
    refused(model, GraLoRAConfig(r=8, target_modules=targets), TypeError, text)


@pytest.mark.parametrize("targets", [["out_proj"], r".*out_proj"], ids=["ending", "expression"])
def test_layer_inside_multihead_attention(targets):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "other": nn.Linear(16, 16)})
    config = GraLoRAConfig(r=4, target_modules=targets)
    refused(model, config, ValueError, r"got attention\.out_proj.*MultiheadAttention reads")


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
    ],
)
def test_hook_on_a_target(register):
    model = Stack()
    getattr(model.body.blocks[1].up, register)(lambda *args: None)
    text = r"must have no hooks.* got body\.blocks\.1\.up with \w+_hooks"
    refused(model, GraLoRAConfig(r=4), ValueError, text)


def test_offloaded_target():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = Stack()
    add_hook_to_module(model.head, AlignDevicesHook(execution_device="cpu"))
    refused(model, GraLoRAConfig(r=4), ValueError, "got head with a forward of its own")


def test_computed_weight():
    model = Stack()
    parametrizations.weight_norm(model.head)
    refused(model, GraLoRAConfig(r=4), TypeError, "got (head|head.parametrizations.*)")


def test_weight_of_a_dtype_without_arithmetic():
    model = Stack()
    model.head.weight = nn.Parameter(torch.ones(4, 16, dtype=torch.int8), requires_grad=False)
    refused(model, GraLoRAConfig(r=4), TypeError, "head: dtype must be .*, got torch.int8")


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["head"]}], ids=["other", "saved"])
def test_parameter_without_a_shape(settings):
    model = Stack()
    model.head = nn.LazyLinear(4)
    config = GraLoRAConfig(r=4, target_modules=["up"], **settings)
    refused(model, config, ValueError, r"got head\.weight, whose module is lazy")


def test_weight_that_is_partitioned_elsewhere():
    model = Stack()
    model.head.weight = nn.Parameter(torch.empty(0))
    refused(model, GraLoRAConfig(r=4), ValueError, r"must be \[4, 16\], got head with \[0\]")


def test_adapter_dtype_without_arithmetic(model):
    text = "adapter_dtype must be float64, .*, got torch.int8"
    refused(model, GraLoRAConfig(r=8), TypeError, text, adapter_dtype=torch.int8)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        pytest.param({"r": 6, "k": 3}, r"q_proj: in_features .*in_features=32, k_in=3", id="grid"),
        pytest.param({"r": 8, "rank_pattern": {"q_proj": 3}}, "r must be divisible", id="rank"),
        pytest.param(
            {"r": 8, "k_pattern": {"1.mlp.up_proj": (5, 2)}},
            r"layers\.1\.mlp\.up_proj: out_features must be divisible by k_out",
            id="k-pattern",
        ),
    ],
)
def test_grid_that_does_not_fit_a_layer(model, settings, text):
    refused(model, GraLoRAConfig(**settings), ValueError, text)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"target_modules": ["query"]}, id="target_modules"),
        pytest.param({"target_modules": "q_proj"}, id="expression-of-an-ending"),
        pytest.param({"exclude_modules": r".*"}, id="exclude_modules"),
        pytest.param({"layers_to_transform": [7]}, id="layers_to_transform"),
        pytest.param({"modules_to_save": ["model"]}, id="modules_to_save"),
    ],
)
def test_no_target(model, settings):
    (name, value), *_ = settings.items()
    value = tuple(value) if isinstance(value, list) else value
    shown = (repr(value)).replace("(", r"\(").replace(")", r"\)").replace(".*", r"\.\*")
    refused(model, GraLoRAConfig(r=8, **settings), ValueError, f"{name}={shown}")


def test_no_target_shows_what_there_is(model):
    text = r"linear layers of the model: model\.layers\.0\.self_attn\.q_proj, .*, …"
    refused(model, GraLoRAConfig(r=8, target_modules=["query"]), ValueError, text)


def test_model_without_linear_layers():
    config = GraLoRAConfig(r=8)
    refused(nn.Sequential(nn.ReLU()), config, ValueError, "linear layers of the model: none")


@pytest.mark.parametrize("name", ["", "a.b", "train", "keys", "1st", "class"])
def test_adapter_name(model, name):
    refused(model, GraLoRAConfig(r=8), ValueError, f"plain identifier.*got {name!r}", name)


def test_adapter_name_that_is_no_text(model):
    refused(model, GraLoRAConfig(r=8), TypeError, "got 3", 3)


def test_name_of_an_injected_adapter(model):
    inject(model, GraLoRAConfig(r=8, target_modules=["q_proj"]), "first")
    config = GraLoRAConfig(r=8, target_modules=["up_proj"])
    refused(model, config, ValueError, r"must be new, got 'first' \(present: 'first'\)", "first")


def test_name_of_an_adapter_that_a_layer_has():
    model = Stack()
    model.head = GraLoRALinear.from_linear(model.head, r=4)
    refused(model, GraLoRAConfig(r=4, target_modules=["up"]), ValueError, "got 'default'")


@pytest.mark.parametrize("bias", ["all", "gralora_only"])
def test_second_adapter_with_biases(bias):
    model = inject(Stack(), GraLoRAConfig(r=4, bias="all"), "first")
    text = rf"only one adapter .* got bias='{bias}' beside 'first' with bias='all'"
    refused(model, GraLoRAConfig(r=4, bias=bias), ValueError, text, "second")


def test_merged_adapter():
    model = inject(Stack(), GraLoRAConfig(r=4), "first")
    model.head.merge()
    text = r"got \['first'\] in head \(unmerge\(\) first\)"
    refused(model, GraLoRAConfig(r=4), RuntimeError, text, "second")


@pytest.mark.parametrize("inner", [False, True], ids=["model", "part"])
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "parallel"])
def test_wrapped(wrap, inner):
    model = nn.Sequential(wrap(Stack())) if inner else wrap(Stack())
    text = r"must not be wrapped yet, got .*\(inject before wrapping"
    refused(model, GraLoRAConfig(r=4), ValueError, text)


def test_model_with_adapters_of_peft(model):
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    text = r"must hold no adapters of PEFT, got .*q_proj, a peft\.tuners\.lora"
    refused(peft_model, GraLoRAConfig(r=8), ValueError, text)


def test_sharded_model(mesh):
    model = fully_shard(Stack(), mesh=mesh)
    config = GraLoRAConfig(r=4, target_modules=["head"])
    refused(model, config, ValueError, r"got head with a DTensor \(inject before fully_shard\)")


def test_sharded_model_with_an_adapter_already(mesh):
    config = GraLoRAConfig(r=4, target_modules=["head"])
    model = fully_shard(inject(Stack(), config), mesh=mesh)
    text = r"got head with a DTensor \(inject before fully_shard\)"
    refused(model, config, ValueError, text, "second")


@pytest.mark.parametrize("model", [nn.Linear(8, 8), GraLoRALinear(8, 8)], ids=["plain", "adapted"])
def test_layer_instead_of_a_model(model):
    refused(model, GraLoRAConfig(r=4), TypeError, "must hold the layers to adapt")


def test_something_else_instead_of_a_model():
    with pytest.raises(TypeError, match=r"^inject: model must be a torch\.nn\.Module, got str"):
        inject("model", GraLoRAConfig())


def test_something_else_instead_of_a_configuration(model):
    refused(model, {"r": 8}, TypeError, "config must be a GraLoRAConfig, got dict")


def test_list_that_cannot_be_saved(model):
    config = GraLoRAConfig(r=8, target_modules=["lm_head"], modules_to_save=["layers"])
    refused(model, config, TypeError, r"got model\.layers, a ModuleList")


def test_target_tied_to_a_saved_module():
    model = llama(tie_word_embeddings=True)
    model.model.embed_tokens = _Projection(model.lm_head.weight)
    config = GraLoRAConfig(r=8, target_modules=["embed_tokens"], modules_to_save=["lm_head"])
    text = r"must not share a weight with a target, got .* and model\.embed_tokens\.weight"
    refused(model, config, ValueError, text)


def test_saved_module_tied_to_an_adapted_layer():
    model = llama(tie_word_embeddings=True)
    inject(model, GraLoRAConfig(r=8, target_modules=["lm_head"]), "first")
    config = GraLoRAConfig(r=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    text = r"with an adapted layer, got model\.embed_tokens\.weight and lm_head\.weight"
    refused(model, config, ValueError, text, "second")


class _Projection(nn.Linear):
    def __init__(self, weight):
        super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight = weight


def test_saved_module_with_an_adapted_layer():
    model = llama_classifier()
    inject(model, GraLoRAConfig(r=8, target_modules=["up_proj"]), "first")
    config = GraLoRAConfig(r=8, target_modules=["q_proj"], modules_to_save=["layers.0.mlp"])
    text = r"got model\.layers\.0\.mlp with model\.layers\.0\.mlp\.up_proj"
    refused(model, config, TypeError, text, "second")


def test_target_that_another_adapter_saves():
    model = Stack()
    inject(model, GraLoRAConfig(r=4, target_modules=["up"], modules_to_save=["head"]), "first")
    config = GraLoRAConfig(r=4, target_modules=["up", "head"])
    refused(model, config, TypeError, "got head, a .*SavedModule", "second")


def test_saved_module_that_is_offloaded():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = Stack()
    add_hook_to_module(model.head, AlignDevicesHook(execution_device="cpu"))
    config = GraLoRAConfig(r=4, target_modules=["up"], modules_to_save=["head"])
    refused(model, config, ValueError, "got head with one of its own")


def test_part_of_a_saved_module_that_is_used_elsewhere():
    model = Stack()
    model.body.blocks[2].up = model.body.blocks[1].up
    config = GraLoRAConfig(r=4, target_modules=["head"], modules_to_save=["blocks.1"])
    text = r"got body\.blocks\.1\.up, which is body\.blocks\.2\.up too"
    refused(model, config, ValueError, text)


def test_weight_that_the_model_itself_shares():
    model = Stack()
    model.head_weight = model.head.weight
    config = GraLoRAConfig(r=4, target_modules=["up"], modules_to_save=["head"])
    text = r"must not share a parameter with the model itself, got head\.weight and head_weight"
    refused(model, config, ValueError, text)


@pytest.mark.parametrize("second", [False, True], ids=["first-adapter", "second-adapter"])
def test_memory_that_runs_out(monkeypatch, second):
    model = Stack()
    if second:
        inject(model, GraLoRAConfig(r=4), "first")
    model.norm.weight.requires_grad_(True)
    before, calls, reset = snapshot(model), [], GraLoRALinear.reset_adapter

    def fail(self, name):
        calls.append(name)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        reset(self, name)

    monkeypatch.setattr(GraLoRALinear, "reset_adapter", fail)
    with pytest.raises(torch.OutOfMemoryError):
        inject(model, GraLoRAConfig(r=4), "default")
    assert snapshot(model) == before
