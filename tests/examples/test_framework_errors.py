"""What the examples of frameworks say when they cannot do what they were asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from examples_framework_runs import PACKAGES, finish_example, main, options_of

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("torch_settings")

EXAMPLES = tuple(PACKAGES)
LANGUAGE = EXAMPLES[:3]


@pytest.mark.parametrize("example", EXAMPLES)
def test_resuming_without_a_checkpoint_is_refused(
    tiny_llama: Path, essay: Path, tmp_path: Path, example: str
) -> None:
    options = [*options_of(example, tiny_llama, essay), "--output", str(tmp_path), "--resume"]
    with pytest.raises(SystemExit, match=r"^error: --resume: no whole checkpoint in .* without"):
        main(example, *options)


def _half_checkpoint(folder: Path) -> None:
    """What is there of a checkpoint of Trainer's before its last file."""
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "adapter_model.safetensors").touch()


def test_a_checkpoint_that_is_not_whole_is_not_resumed(
    tiny_llama: Path, essay: Path, tmp_path: Path
) -> None:
    _half_checkpoint(tmp_path)
    options = [*options_of("trainer", tiny_llama, essay), "--output", str(tmp_path), "--resume"]
    with pytest.raises(SystemExit, match=r"^error: --resume: no whole checkpoint"):
        main("trainer", *options)


@pytest.fixture
def finished(tiny_llama: Path, essay: Path, tmp_path: Path) -> list[str]:
    """The options of a run of accelerate that has left checkpoints, its folder included."""
    options = options_of("accelerate", tiny_llama, essay)
    finish_example("accelerate", tmp_path / "run", *options)
    return [*options, "--output", str(tmp_path / "run")]


def test_a_run_is_not_overwritten(finished: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^error: --output: .* holds checkpoints .*--resume"):
        main("accelerate", *finished)


def test_resuming_with_another_rank_is_refused(finished: list[str]) -> None:
    expected = r"^error: --resume: r must be that of the run, 8, got 4"
    with pytest.raises(SystemExit, match=expected):
        main("accelerate", *finished, "--resume", "-r", "4")


@pytest.mark.parametrize("example", LANGUAGE)
def test_a_grid_that_divides_no_width_is_refused(
    tiny_llama: Path, essay: Path, tmp_path: Path, example: str
) -> None:
    options = [*options_of(example, tiny_llama, essay), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^error: .*divisible"):
        main(example, *options, "-r", "9", "-k", "3")


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_run_that_diverges_ends(
    tiny_llama: Path, essay: Path, tmp_path: Path, example: str
) -> None:
    options = [*options_of(example, tiny_llama, essay), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^error: the loss became nan at step \d; lower --lr"):
        main(example, *options, "--lr", "1e30")


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_missing_package_is_named(
    tiny_llama: Path,
    essay: Path,
    tmp_path: Path,
    example: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*options_of(example, tiny_llama, essay), "--output", str(tmp_path)]
    last = PACKAGES[example][-1]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == last else find(name, *rest),
    )
    expected = rf'^error: this example needs {last}: run `pip install "\.\[frameworks\]"`'
    with pytest.raises(SystemExit, match=expected):
        main(example, *options)


@pytest.mark.parametrize("example", EXAMPLES)
def test_ctrl_c_says_how_to_go_on(
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    script = importlib.import_module(f"finetune_{example}")
    monkeypatch.setattr(script, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(example, "--output", str(tmp_path))
    assert ended.value.code == 130
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--device", "cuda:1"], "invalid choice: 'cuda:1'", id="device"),
        pytest.param(["--steps", "0"], "must be a whole number from 1 on, got '0'", id="steps"),
        pytest.param(["--seed", str(1 << 32)], "must be below 2**32, got 4294967296", id="seed"),
        pytest.param(["--alpha", "-1"], "must be a whole number from 1 on, got '-1'", id="alpha"),
    ],
)
def test_the_command_line_is_checked(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main("accelerate", *options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(["not json", "{}"], "must have a JSON object a line: ", id="no JSON"),
        pytest.param(
            ['{"text": "a"}', '{"prompt": "b"}'],
            "row 2 of .* must be an object with text, with messages, or with prompt and "
            "completion, got prompt",
            id="a column is missing",
        ),
        pytest.param(['["text"]', "{}"], "row 1 of .*, got list", id="no object"),
        pytest.param(['{"text": "a"}'], "must have two rows or more, got 1", id="one row"),
    ],
)
def test_data_that_trl_cannot_take_is_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    from finetuning.errors import FinetuneError
    from frameworks import jsonl

    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(FinetuneError, match=f"^--data: .*{message}"):
        jsonl.load(path, held_out=4)


def test_a_window_that_cuts_off_all_completions_is_refused(
    tiny_llama: Path, essay: Path, tmp_path: Path
) -> None:
    options = [*options_of("trl", tiny_llama, essay), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^error: --seq-len: a completion to train on .* 8 tok"):
        main("trl", *options, "--seq-len", "8")


def test_data_that_is_missing_is_named(tmp_path: Path) -> None:
    from finetuning.errors import FinetuneError
    from frameworks import jsonl

    with pytest.raises(FinetuneError, match=r"^--data: cannot read .*absent: No such file"):
        jsonl.load(tmp_path / "absent", held_out=4)


def test_a_base_that_is_none_is_named(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--output", str(tmp_path / "run"), "--base", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^error: --base: diffusers cannot load "):
        main("diffusion", *options)


def test_the_options_of_a_run_are_kept(finished: list[str]) -> None:
    kept = json.loads((Path(finished[-1]) / "options.json").read_text(encoding="utf-8"))
    assert (kept["r"], kept["steps"], kept["device"]) == (8, 6, "cpu")
