"""What finetune.py says when it cannot do what it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples_finetune_runs import start, tiny_options

import gralora

Finetune = Callable[..., dict[str, Any]]


def _message(error: pytest.ExceptionInfo[SystemExit]) -> str:
    # Wrapped lines and the user's folders are not what these tests are about.
    return str(error.value)


@pytest.fixture
def tiny(tiny_llama: Path, essay: Path, tmp_path: Path) -> list[str]:
    return tiny_options(tiny_llama, essay, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            ["-k", "3", "-r", "9"],
            r"^error: inject: .*in_features must be divisible by k_in, got in_features=32, k_in=3",
            id="k does not divide a width",
        ),
        pytest.param(
            ["-k", "4", "-r", "6"],
            r"^error: GraLoRAConfig: r must be divisible by k_in, got r=6, k_in=4",
            id="k does not divide r",
        ),
        pytest.param(
            ["--method", "hybrid", "-k", "4", "-r", "4"],
            r"^error: --method hybrid: r must be above k, got -r 4, -k 4",
            id="rank too small for a hybrid",
        ),
        pytest.param(
            ["--seq-len", "256"],
            r"^error: --seq-len: the model has 128 positions, got --seq-len 256",
            id="window longer than the model's",
        ),
        pytest.param(
            ["--lr", "1e30"], r"^error: the loss became nan at step .*; lower --lr", id="diverged"
        ),
    ],
)
def test_the_reason_is_named(
    finetune: Finetune, tiny: list[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        finetune(*tiny, *options)


def test_a_missing_text_is_named(finetune: Finetune, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: --text: cannot read .*absent\.txt: No such"):
        finetune(*tiny, "--text", str(tmp_path / "absent.txt"))


def test_a_text_that_is_no_text_is_named(
    finetune: Finetune, tiny: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "picture.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit, match=r"^error: --text: .*picture\.bin is no UTF-8 text"):
        finetune(*tiny, "--text", str(path))


def test_too_little_text_is_counted(finetune: Finetune, tiny: list[str], tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("x" * 200, encoding="utf-8")
    expected = r"the text to hold out must fill a window of --seq-len 32 tokens, got 20 tokens"
    with pytest.raises(SystemExit, match=expected):
        finetune(*tiny, "--text", str(path))


def test_a_model_that_is_none_is_named(finetune: Finetune, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: --model: transformers cannot load '.*'"):
        finetune(*tiny, "--model", str(tmp_path))


def test_an_out_that_is_a_file_is_named(
    finetune: Finetune, tiny: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "taken"
    path.touch()
    with pytest.raises(SystemExit, match=r"^error: --out: cannot make the folder .*taken"):
        finetune(*tiny, "--out", str(path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible")
def test_cuda_without_a_gpu_is_refused(finetune: Finetune, tiny: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^error: --device cuda: .*\(accepted here: cpu\)"):
        finetune(*tiny, "--device", "cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--device", "tpu"], "must be cpu, cuda or cuda:N, got 'tpu'", id="device"),
        pytest.param(["--steps", "0"], "must be a whole number from 1 on, got '0'", id="steps"),
        pytest.param(["--seq-len", "1"], "must be a whole number from 2 on, got '1'", id="seq-len"),
        pytest.param(["-k", "two"], "must be a whole number from 1 on, got 'two'", id="k"),
        pytest.param(["--lr", "-1"], "must be a number above 0, got '-1'", id="lr"),
        pytest.param(["--lr", "nan"], "must be a number above 0, got 'nan'", id="lr nan"),
        pytest.param(["--method", "dora"], "invalid choice: 'dora'", id="method"),
    ],
)
def test_the_command_line_is_checked(
    finetune: Finetune,
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        finetune(*tiny, *options)
    assert message in capsys.readouterr().err


def test_an_error_is_one_line_and_status_1(tiny: list[str], tmp_path: Path) -> None:
    process = start(*tiny, "--text", str(tmp_path / "absent.txt"))
    # Libraries that transformers loads where they are installed may have words of their own.
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert (process.returncode, len(errors)) == (1, 1)
    assert "Traceback" not in process.stderr


def test_a_wrong_merge_is_an_error(
    finetune: Finetune, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget_the_adapter(model: Any) -> Any:
        for module in model.modules():
            if hasattr(module, "enable_adapters") and hasattr(module, "delta_weight"):
                module.enable_adapters(False)
        return model

    monkeypatch.setattr(gralora, "merge_and_unload", forget_the_adapter)
    with pytest.raises(SystemExit, match=r"^error: the merged model's logits must be those of"):
        finetune(*tiny)


def test_a_difference_that_is_no_number_is_an_error() -> None:
    from finetuning.errors import FinetuneError
    from finetuning.merged import LogitsDifference

    with pytest.raises(FinetuneError, match="got a difference of nan"):
        LogitsDifference(relative=float("nan"), allowed=0.1, scale=1.0).check()
