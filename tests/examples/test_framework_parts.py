"""What the examples of frameworks are made of: prompts, orders, pictures, processes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples_framework_runs import FrameworkRun, finish_example, options_of, stop_halfway

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOURCE = '''
def documented(a, b=1):
    """Add two numbers."""
    return a + b

def without(a):
    return a

class Of:
    def method(self):
        """Do nothing.

        For a long time.
        """
        pass

def all_words():
    """Nothing but words."""
'''


def test_each_documented_function_is_an_example() -> None:
    from frameworks.docstrings import examples

    found = list(examples(SOURCE, chat=False))
    assert [row["completion"] for row in found] == [
        "Add two numbers.",
        "Do nothing.\n\nFor a long time.",
    ]
    assert found[0]["prompt"].endswith("def documented(a, b=1):\n    return a + b\n\n")


def test_the_function_of_a_prompt_has_no_docstring() -> None:
    from frameworks.docstrings import INSTRUCTION, held_out_examples

    for row in held_out_examples(20, chat=False):
        tree = ast.parse(row["prompt"].removeprefix(INSTRUCTION))
        assert ast.get_docstring(tree.body[0]) is None


def test_a_chat_has_the_same_texts() -> None:
    from frameworks.docstrings import examples

    (plain, *_), (chat, *_) = (list(examples(SOURCE, chat=chat)) for chat in (False, True))
    assert chat == {
        "prompt": [{"role": "user", "content": plain["prompt"].rstrip()}],
        "completion": [{"role": "assistant", "content": plain["completion"]}],
    }


def test_what_is_held_out_is_not_trained_on() -> None:
    from frameworks.docstrings import held_out_examples, train_examples

    train = {row["prompt"] for row in train_examples(chat=False)}
    held_out = held_out_examples(1000, chat=False)
    assert len(train) > 500
    assert len(held_out) > 50
    assert sum(row["prompt"] in train for row in held_out) < len(held_out) / 50


def test_rows_of_a_file_end_with_those_held_out(tmp_path: Path) -> None:
    from frameworks import jsonl

    rows = [{"text": str(i)} for i in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert jsonl.load(path, held_out=8) == (rows[:27], rows[27:])
    assert jsonl.load(path, held_out=2) == (rows[:28], rows[28:])


def test_the_order_has_every_example_in_each_round() -> None:
    pytest.importorskip("accelerate")
    from frameworks.loop import InOrder

    columns = {"ids": torch.arange(5)}
    order = [int(InOrder(columns, 12, seed=3)[i]["ids"]) for i in range(12)]
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:10]
    assert len(InOrder(columns, 12, seed=3)) == 12


@pytest.mark.parametrize("style", ["filled", "outline"])
def test_pictures_have_paper_and_ink(style: str) -> None:
    from frameworks import pictures

    drawn = pictures.draw(style, 64, seed=0)
    pixels = drawn["pixels"]
    assert pixels.shape == (64, 1, 16, 16)
    assert set(drawn["labels"].tolist()) == {0, 1, 2}
    assert pixels.amin((1, 2, 3)).max() == -1
    assert pixels.amax((1, 2, 3)).min() > 0.5


def test_a_filled_shape_has_ink_where_its_outline_has_none() -> None:
    from frameworks import pictures

    filled, outline = (pictures.draw(s, 64, seed=0)["pixels"] for s in ("filled", "outline"))
    assert (filled >= outline - 1e-6).all()
    assert ((filled - outline).amax((1, 2, 3)) > 1).all()


def _two_processes(folder: Path, *options: str) -> FrameworkRun:
    script = str(EXAMPLES / "finetune_accelerate.py")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", script]
    run = subprocess.run(
        [sys.executable, "-P", *launch, *options, "--output", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stderr
    return FrameworkRun(folder, json.loads((folder / "run.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def together(
    tiny_llama: Path, essay: Path, tmp_path_factory: pytest.TempPathFactory
) -> FrameworkRun:
    """A run in two processes of the CPU without a pause."""
    pytest.importorskip("accelerate")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo, through which processes of a CPU speak")
    folder = tmp_path_factory.mktemp("two-processes") / "straight"
    return _two_processes(folder, *options_of("accelerate", tiny_llama, essay), "--batch", "2")


@pytest.mark.usefixtures("torch_settings")
def test_two_processes_of_accelerate_train_as_one_with_twice_the_batch(
    together: FrameworkRun, tiny_llama: Path, essay: Path, tmp_path: Path
) -> None:
    options = options_of("accelerate", tiny_llama, essay)
    alone = finish_example("accelerate", tmp_path / "one", *options, "--batch", "4")
    expected = alone.record["losses"]
    assert together.record["losses"] == pytest.approx(expected, rel=1e-5)


def test_two_processes_of_accelerate_resume_to_the_same_bits(
    together: FrameworkRun, tiny_llama: Path, essay: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "resumed"
    stop_halfway(together, folder)
    options = [*options_of("accelerate", tiny_llama, essay), "--batch", "2", "--resume"]
    resumed = _two_processes(folder, *options)
    assert resumed.record["losses"] == together.record["losses"]
    assert resumed.record["options"]["resume"]
    assert resumed.adapter.keys() == together.adapter.keys()
    assert all(torch.equal(value, resumed.adapter[n]) for n, value in together.adapter.items())
