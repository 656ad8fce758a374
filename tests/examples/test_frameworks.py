"""The examples of frameworks on a tiny model: they learn, save and resume as if never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from examples_finetune_runs import held_out_loss
from examples_framework_runs import (
    HALF,
    PACKAGES,
    STEPS,
    FrameworkRun,
    finish_example,
    main,
    options_of,
    stop_halfway,
)

import gralora

pytest.importorskip("transformers")

EXAMPLES = tuple(PACKAGES)
LANGUAGE = ("trainer", "trl", "accelerate")
# Their held-out text is all of it: the windows of the last tenth.
ON_TEXT = ("trainer", "accelerate")


Straight = Callable[[str], FrameworkRun]


@pytest.fixture(scope="module")
def straight(
    torch_settings_of_module: None,
    tiny_llama: Path,
    essay: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Straight:
    """The run of an example without a pause, made once."""
    runs: dict[str, FrameworkRun] = {}

    def run(example: str) -> FrameworkRun:
        if example not in runs:
            folder = tmp_path_factory.mktemp("frameworks") / example
            runs[example] = finish_example(example, folder, *options_of(example, tiny_llama, essay))
        return runs[example]

    return run


@pytest.fixture(scope="module")
def resumed(
    straight: Straight, tiny_llama: Path, essay: Path, tmp_path_factory: pytest.TempPathFactory
) -> Straight:
    """The run of an example that goes on from the checkpoint halfway, made once."""
    runs: dict[str, FrameworkRun] = {}

    def run(example: str) -> FrameworkRun:
        if example not in runs:
            folder = tmp_path_factory.mktemp("resumed") / example
            stop_halfway(straight(example), folder)
            options = options_of(example, tiny_llama, essay)
            runs[example] = finish_example(example, folder, *options, "--resume")
        return runs[example]

    return run


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_held_out_loss_falls(straight: Straight, example: str) -> None:
    losses = straight(example).record["held_out_losses"]
    assert losses[str(STEPS)] < losses["0"] - 0.005


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_resumed_run_has_the_same_losses(
    straight: Straight, resumed: Straight, example: str
) -> None:
    losses = resumed(example).record["losses"]
    assert list(losses) == [str(step) for step in range(1, STEPS + 1)]
    assert losses == straight(example).record["losses"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_resumed_run_ends_with_the_same_adapter(
    straight: Straight, resumed: Straight, example: str
) -> None:
    expected, found = straight(example).adapter, resumed(example).adapter
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_second_half_changes_the_adapter(straight: Straight, example: str) -> None:
    from safetensors.torch import load_file

    run = straight(example)
    (path,) = (run.folder / f"checkpoint-{HALF}").rglob("adapter_model.safetensors")
    halfway = load_file(path)
    assert any(not torch.equal(halfway[name], tensor) for name, tensor in run.adapter.items())


@pytest.mark.parametrize("example", ["trainer", "trl"])
def test_every_layer_of_peft_is_accelerated(straight: Straight, example: str) -> None:
    assert straight(example).record["layers"] == {"fused": 14}


def _base(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("example", ON_TEXT)
def test_peft_loads_the_adapter_and_has_the_recorded_loss(
    straight: Straight, tiny_llama: Path, essay: Path, example: str
) -> None:
    peft = pytest.importorskip("peft")
    run = straight(example)
    model = peft.PeftModel.from_pretrained(_base(tiny_llama), run.folder / "adapter")
    expected = run.record["held_out_losses"][str(STEPS)]
    assert held_out_loss(model, tiny_llama, essay) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("example", LANGUAGE)
def test_gralora_loads_what_peft_loads(straight: Straight, tiny_llama: Path, example: str) -> None:
    peft = pytest.importorskip("peft")
    folder = straight(example).folder / "adapter"
    ids = torch.arange(1, 33)[None]
    with torch.no_grad():
        ours = gralora.load_adapter(_base(tiny_llama), folder).eval()(input_ids=ids).logits
        theirs = peft.PeftModel.from_pretrained(_base(tiny_llama), folder)
        torch.testing.assert_close(ours, theirs.eval()(input_ids=ids).logits)
        assert not torch.allclose(ours, _base(tiny_llama)(input_ids=ids).logits)


def test_the_diffusion_model_and_its_adapter_load(straight: Straight) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = straight("diffusion").folder
    base = diffusers.DiTTransformer2DModel.from_pretrained(folder / "base").eval()
    pixels = torch.randn(2, 1, 16, 16)
    given = {"timestep": torch.tensor([10, 500]), "class_labels": torch.tensor([0, 2])}
    with torch.no_grad():
        before = base(pixels, **given).sample
        after = gralora.load_adapter(base, folder / "adapter").eval()(pixels, **given).sample
    assert not torch.allclose(before, after)


def test_the_diffusion_adapter_is_in_attention_alone(straight: Straight) -> None:
    layers = {name.rsplit(".", 1)[0] for name in straight("diffusion").adapter}
    projections = {name.split(".attn1.")[1] for name in layers}
    assert projections == {"to_q", "to_k", "to_v", "to_out.0"}


def test_the_diffusion_example_draws(straight: Straight) -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(straight("diffusion").folder / "samples.png") as picture:
        assert picture.size == (4 * 12 * 16, 4 * 3 * 16)


@pytest.mark.parametrize("example", EXAMPLES)
def test_bfloat16_trains_float32_factors(
    torch_settings: None, tiny_llama: Path, essay: Path, tmp_path: Path, example: str
) -> None:
    options = [*options_of(example, tiny_llama, essay), "--steps", "2", "--dtype", "bfloat16"]
    run = finish_example(example, tmp_path / "run", *options)
    assert {tensor.dtype for tensor in run.adapter.values()} == {torch.float32}
    assert any(tensor.abs().max() > 0 for name, tensor in run.adapter.items() if "_B" in name)


@pytest.mark.parametrize("example", LANGUAGE)
def test_checkpointed_activations_change_no_loss(
    straight: Straight, tiny_llama: Path, essay: Path, tmp_path: Path, example: str
) -> None:
    options = [*options_of(example, tiny_llama, essay), "--grad-checkpointing"]
    run = finish_example(example, tmp_path / "run", *options)
    expected = straight(example).record["losses"]
    assert run.record["losses"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("example", EXAMPLES)
def test_help_names_the_options(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(example, "--help")
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--steps", "--output", "--resume", "--dtype"))
