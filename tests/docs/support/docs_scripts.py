"""Scripts of the repository as documents start them, with small stand-ins for what takes long.

A stand-in is an option after those of the command, which the script itself has, or a tiny model in
the place of SmolLM2.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from docs_inline import ROOT, Command

for _folder in (ROOT / "examples", ROOT / "tests" / "examples" / "support"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))

_ACCELERATE = "accelerate.commands.accelerate_cli"
FRAMEWORKS = ("trainer", "trl", "accelerate", "diffusion")
_RESULT = ROOT / "benchmarks" / "results" / "cpu_layer.json"
# Not started where an earlier run had the same options, or those and one for a file of results: the
# layers of the one are large, the other imports PEFT in two processes for each file.
_SLOW = ("benchmarks/export_lora.py", "tests/peft_suite/run.py")
_SMALLEST = "smollm2-135m"
# The options of each suite of the benchmarks that make it brief, also on a machine without a GPU.
# Those of sizes come last, so that a preset can take their place.
_BRIEF = {
    "layer": "--rk 8:2 --mode eager --tokens 8 --shapes 64x32",
    "kernels": "--rk 8:2 --mode eager --path chosen --tokens 8 --shapes 64x32",
    "model": f"--rk 8:2 --layers 1 --tokens 16 --checkpointed 16 --preset {_SMALLEST}",
    "host": "",
    "merge": "--rk 8:2 --mode eager --shapes 64x32",
}
# Where a command names none.
_VARIANTS = dict.fromkeys(("layer", "host"), "base,peft_lora,gralora")
_VARIANTS["model"] = "frozen,peft_lora,gralora"
_BRIEF_BASES = {"moe": "--experts 64x32:4:2", "shared": "--groups 64x32+16"}
# What stands for PEFT's tests, of which there are thousands, by file.
_PEFTS_TESTS = {
    "mixed": "def test_forward():\n    pass\n",
    "custom_models": """
import torch
from peft import GraloraConfig, get_peft_model


def test_forward():
    config = GraloraConfig(r=4, gralora_k=2, target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
    assert model(torch.randn(2, 3, 8)).shape == (2, 3, 8)
""",
}


def _meaning(words: Sequence[str]) -> dict[str, str]:
    """Options and values of a command line that has nothing else: the last of each counts."""
    return dict(zip(words[::2], words[1::2], strict=True))


def brief(words: Sequence[str]) -> list[str]:
    """Options that make a suite of the benchmarks brief.

    Args:
        words: of the command, the suite's name first.

    """
    options = _BRIEF[words[0]].split()
    if "--preset" in words and words[0] != "model":
        # The last one counts, and shapes beside it are refused.
        options[options.index("--shapes") :] = ["--preset", _SMALLEST]
    bases = words[words.index("--base") + 1] if "--base" in words else ""
    options += _BRIEF_BASES.get(bases, "").split()
    if words[0] in _VARIANTS and "--variants" not in words:
        options += ["--variants", _VARIANTS[words[0]]]
    return [*options, "--device", "cpu", "--rounds", "9"]


class Stage:
    """A tiny model and a text, and a folder for what the scripts leave behind.

    Args:
        folder: empty.

    """

    def __init__(self, folder: Path) -> None:
        from examples_tiny_llama import save_tiny_llama

        self.folder = folder
        self._done: list[dict[str, str]] = []
        self.model = save_tiny_llama(folder / "tiny-llama")
        self.text = folder / "essay.txt"
        self.text.write_text("the quick brown fox jumps over the lazy dog; " * 120, "utf-8")

    def load(self, _: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
        """What smollm2.py's function of this name does, with the tiny model."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype).to(device)
        return model.eval(), AutoTokenizer.from_pretrained(self.model)

    def stand_ins(self, script: str, words: Sequence[str]) -> list[str]:
        """Options that make a script brief and keep it from the repository's files."""
        out = str(self.folder / "out" / Path(script).stem)
        learn = ["--steps", "2", "--device", "cpu"]
        windows = [*learn, "--seq-len", "32", "--batch", "2"]
        if script.startswith("examples/finetune_"):
            return [*self.of_framework(script), "--output", out]
        if script == "benchmarks/run.py":
            return [] if words[0] == "show" else brief(words)
        if script == "tests/peft_suite/run.py":
            return ["--sources", str(self._pefts()), "--cache", str(self.folder / "peft-suite")]
        pages = self._pages()
        return {
            "examples/finetune.py": [*windows, "--text", str(self.text), "--out", out],
            "examples/train_by_hand.py": [*windows, "-r", "4"],
            "examples/compare_methods.py": [
                *(*learn, "--results", f"{out}/methods.json", "--figure", f"{out}/loss.png")
            ],
            "examples/compare_starts.py": ["-r", "8", "--rounds", "1", "--out", f"{pages}/a.json"],
            "docs/build_reference.py": ["--page", f"{pages}/reference.md"],
            "benchmarks/report_docs.py": [
                *("--page", f"{pages}/benchmarks.md", "--results", f"{pages}/results")
            ],
            "benchmarks/plot.py": [],
            "benchmarks/export_lora.py": [
                *("--rounds", "1", "--r", "8", "--k", "2", "--json", f"{pages}/export.json")
            ],
        }[script]

    def of_framework(self, script: str) -> list[str]:
        """The options of a brief run of an example of frameworks, but for its folder."""
        from examples_framework_runs import options_of

        example = Path(script).stem.removeprefix("finetune_")
        return options_of(example, self.model, self.text)

    def _pefts(self) -> Path:
        """A folder that looks like PEFT's sources, of the version that is here."""
        origin = self.folder / "pefts"
        if not origin.exists():
            (origin / "tests").mkdir(parents=True)
            for name, text in _PEFTS_TESTS.items():
                (origin / "tests" / f"test_{name}.py").write_text(text, "utf-8")
            (origin / "pyproject.toml").write_text("[tool.pytest.ini_options]\n", "utf-8")
            (origin / "PKG-INFO").write_text(f"Version: {version('peft')}\n", "utf-8")
        return origin

    def _pages(self) -> Path:
        """A folder with what report_docs.py reads: the page, and one of its files."""
        pages = self.folder / "docs"
        (pages / "images").mkdir(parents=True, exist_ok=True)
        (pages / "results").mkdir(exist_ok=True)
        shutil.copy(_RESULT, pages / "results")
        shutil.copy(ROOT / "docs" / "benchmarks.md", pages)
        return pages

    def forget(self, script: str) -> None:
        """Remove what an earlier run of a script has left behind."""
        shutil.rmtree(self.folder / "out" / Path(script).stem, ignore_errors=True)

    def words(self, words: Sequence[str]) -> list[str]:
        """A reader's words in the place of names in capitals and of patterns."""
        names = {"OUT_DIR/*.json": str(_RESULT), "FILE": str(_RESULT), "FILE...": str(_RESULT)}
        names |= {"DIR": str(self.folder / "plots")}
        records = str(self.folder / "records")
        found: list[str] = []
        for word in words:
            matches = sorted(map(str, ROOT.glob(word))) if "*" in word and "/" in word else []
            own = names.get(word, re.sub(r"^OUT_DIR\b", records, word))
            found += matches if matches and word not in names else [own]
        return found

    def run(self, script: str, words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
        """Start a script in this process; fail unless it ends well."""
        import smollm2

        words = self.words(words)
        words = [*words, *self.stand_ins(script, words)]
        meaning = {"script": script, **_meaning(words)} if script in _SLOW else {}
        if any(meaning.items() <= earlier.items() for earlier in self._done if meaning):
            return
        patch.chdir(self.folder)
        patch.syspath_prepend(str((ROOT / script).parent))
        patch.setattr(smollm2, "fetch", lambda _: self.model)
        patch.setattr(smollm2, "load", self.load)
        patch.setattr(subprocess, "run", self._start_instead(subprocess.run, patch))
        self._start(str(ROOT / script), words, patch)
        if meaning:
            self._done.append(meaning)

    def _start(self, path: str, words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
        from examples_framework_runs import forget_accelerate

        patch.setattr(sys, "argv", [path, *words])
        # Scripts that start pytest themselves: what this run was given is not theirs.
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                pytest.fail(f"{path} ended with {ended.code}")
        finally:
            if "accelerate" in sys.modules:
                forget_accelerate()

    def _start_instead(self, run: Callable[..., Any], patch: pytest.MonkeyPatch) -> Any:
        """``subprocess.run`` that starts finetune.py here, where its model is the tiny one."""

        def here(command: Sequence[str], *rest: Any, **named: Any) -> Any:
            if len(command) < 2 or not command[1].endswith("finetune.py"):
                return run(command, *rest, **named)
            _, path, *words = command
            brief = ["--text", str(self.text), "--seq-len", "32"]
            return self._start(path, [*words, *brief], patch)

        return here

    def launch(self, command: Command) -> None:
        """Start a command of torchrun or accelerate in processes of its own."""
        program = {"torchrun": "torch.distributed.run", "accelerate": _ACCELERATE}
        start, *words = command.words
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        script, words[at] = words[at], str(ROOT / words[at])
        words += [*self.of_framework(script), "--output", str(self.folder / "out" / start)]
        settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": ""}
        # A free port, by torchrun's own variable: other tests may hold the usual one.
        settings |= {"PET_STANDALONE": "1", "MASTER_PORT": "0"}
        ended = subprocess.run(
            [sys.executable, "-m", program[start], *words],
            cwd=self.folder,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
