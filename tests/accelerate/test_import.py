"""What is imported, and what is said where PEFT is missing."""

from __future__ import annotations

import subprocess
import sys

# Finders that find nothing of the hidden packages, as if they were not installed.
HIDE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run(code: str, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A Python process for which some packages are not installed."""
    code = HIDE.format(names=hidden) + code
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)


def test_gralora_imports_no_peft():
    result = run("import gralora, gralora.nn, gralora.integrations; print('peft' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_without_peft():
    result = run("import gralora.integrations.peft", hidden=("peft",))
    assert result.stderr.strip().splitlines()[-1] == (
        "ImportError: gralora.integrations.peft: needs the package peft, which cannot be imported: "
        "No module named 'peft' (pip install 'peft>=0.19')"
    )


def test_without_any_optional_package():
    code = (
        "import peft, torch\n"
        "from gralora.integrations.peft import accelerate, report\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        "model = peft.get_peft_model(model, peft.LoraConfig(target_modules=['0']))\n"
        "print(accelerate(model) is model, report(model).counts())\n"
    )
    result = run(code, hidden=("bitsandbytes", "torchao", "matplotlib"))
    assert result.stdout.strip() == "True {'fused': 1}", result.stderr
