"""Which layers are adapted and which modules saved: the same as with PEFT."""

from __future__ import annotations

import warnings

import pytest
from injection_models import Stack, adapted, llama, llama_classifier
from peft import GraloraConfig, LoraConfig, get_peft_model
from peft.tuners.gralora import GraloraLayer
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records
from gralora.injection.saved_module import SavedModule

CASES = [
    pytest.param(llama, {"target_modules": "all-linear"}, id="all-linear"),
    pytest.param(llama, {"target_modules": "ALL-linear"}, id="all-linear-in-capitals"),
    pytest.param(llama, {"target_modules": ["q_proj", "v_proj"]}, id="endings"),
    pytest.param(llama, {"target_modules": ["self_attn.q_proj"]}, id="long-ending"),
    pytest.param(llama, {"target_modules": ["proj", "down_proj"]}, id="no-dot-no-match"),
    pytest.param(llama, {"target_modules": ["model.layers.1.mlp.up_proj"]}, id="full-name"),
    pytest.param(llama, {"target_modules": ["lm_head", "q_proj"]}, id="head-by-name"),
    pytest.param(llama, {"target_modules": r".*\.(q|k)_proj"}, id="expression"),
    pytest.param(llama, {"target_modules": r"model\.layers\.0\..*_proj"}, id="full-expression"),
    pytest.param(
        llama, {"target_modules": "all-linear", "exclude_modules": ["o_proj"]}, id="exclude"
    ),
    pytest.param(
        llama,
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.0\..*"},
        id="exclude-expression",
    ),
    pytest.param(
        llama, {"target_modules": "all-linear", "exclude_modules": ["mlp"]}, id="exclude-container"
    ),
    pytest.param(
        llama, {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1}, id="one-layer"
    ),
    pytest.param(llama, {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}, id="layers"),
    pytest.param(llama, {"target_modules": ["q_proj"], "layers_to_transform": []}, id="no-layers"),
    pytest.param(
        llama,
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        id="layers-pattern",
    ),
    pytest.param(
        Stack,
        {
            "target_modules": ["up"],
            "layers_to_transform": [0, 2],
            "layers_pattern": ["h", "blocks"],
        },
        id="layers-patterns",
    ),
    pytest.param(Stack, {"target_modules": ["up"], "layers_to_transform": [1]}, id="first-number"),
    pytest.param(Stack, {"target_modules": "all-linear"}, id="plain-module"),
    pytest.param(Stack, {"target_modules": ["head", "down"]}, id="plain-head"),
    pytest.param(
        Stack, {"target_modules": "all-linear", "modules_to_save": ["head"]}, id="saved-head"
    ),
    pytest.param(
        Stack, {"target_modules": ["down"], "modules_to_save": ["ead", "norm"]}, id="saved-ending"
    ),
    pytest.param(
        llama,
        {"target_modules": "all-linear", "modules_to_save": ["lm_head", "embed_tokens"]},
        id="saved-embeddings",
    ),
    pytest.param(
        llama, {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]}, id="saved-block"
    ),
    pytest.param(
        llama,
        {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["1.mlp"]},
        id="target-in-saved",
    ),
    pytest.param(llama_classifier, {"target_modules": "all-linear"}, id="classifier"),
    pytest.param(
        llama_classifier, {"target_modules": "all-linear", "task_type": "SEQ_CLS"}, id="seq-cls"
    ),
    pytest.param(
        llama_classifier,
        {"target_modules": ["q_proj"], "task_type": "TOKEN_CLS"},
        id="token-cls",
    ),
    pytest.param(llama, {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}, id="causal-lm"),
]


def peft_names(model, settings):
    """Adapted layers and saved modules of PEFT's model."""
    # PEFT's GraLoRA cannot exclude modules; its LoRA can, and all its tuners match alike.
    if "exclude_modules" in settings:
        config, layer = LoraConfig(r=8, **settings), LoraLayer
    else:
        config, layer = GraloraConfig(r=8, gralora_k=2, **settings), GraloraLayer
    wrapped = get_peft_model(model, config).get_base_model()
    layers = {name for name, m in wrapped.named_modules() if isinstance(m, layer)}
    saved = {name for name, m in wrapped.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    return layers, saved


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("build", "settings"), CASES)
def test_selects_what_peft_selects(build, settings):
    layers, saved = peft_names(build(), settings)
    model = build()
    inject(model, GraLoRAConfig(r=8, k=2, **settings))
    assert layers
    assert adapted(model) == layers
    assert {n for n, m in model.named_modules() if isinstance(m, SavedModule)} == saved


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("build", "settings"), CASES)
def test_record_names_what_was_selected(build, settings):
    model = build()
    inject(model, GraLoRAConfig(r=8, k=2, **settings))
    record = adapter_records(model)["default"]
    assert set(record.targets) == adapted(model)
    saved = {name for name, module in model.named_modules() if isinstance(module, SavedModule)}
    assert set(record.saved_modules) == saved


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param("all-linear", id="all-linear"),
        pytest.param(r".*\.up_proj", id="expression"),
        pytest.param(["up_proj"], id="ending"),
        pytest.param(["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"], id="full-name"),
    ],
)
def test_layers_to_transform_holds_for_every_kind_of_target(model, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject(model, GraLoRAConfig(r=8, target_modules=targets, layers_to_transform=[1]))
    assert adapted(model)
    assert all(name.startswith("model.layers.1.") for name in adapted(model))


def test_layers_pattern_with_alternatives(model):
    config = GraLoRAConfig(r=8, layers_to_transform=1, layers_pattern="h|layers")
    inject(model, config)
    assert adapted(model)
    assert all(name.startswith("model.layers.1.") for name in adapted(model))


def test_second_adapter_selects_as_the_first_did():
    once, twice = llama(), llama()
    inject(once, GraLoRAConfig(r=8))
    inject(twice, GraLoRAConfig(r=8, target_modules=["q_proj"]), "first")
    inject(twice, GraLoRAConfig(r=8), "second")
    assert set(adapter_records(twice)["second"].targets) == adapted(once)


def test_head_of_a_token_classifier_is_saved_and_not_adapted():
    model = llama_classifier()
    inject(model, GraLoRAConfig(r=8, task_type="TOKEN_CLS"))
    assert adapter_records(model)["default"].saved_modules == ("score",)
    assert "score" not in adapted(model)


def test_question_answering_head_is_saved():
    model = Stack()
    model.qa_outputs = model.head
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject(model, GraLoRAConfig(r=8, task_type="QUESTION_ANS"))
    assert adapter_records(model)["default"].saved_modules == ("head",)
    assert model.qa_outputs is model.head
    assert isinstance(model.head, SavedModule)
