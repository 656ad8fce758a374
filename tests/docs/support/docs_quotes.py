"""Sentences of the product, as its sources have them, for pages that quote them word for word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
# What stands for a name or number, here and in pages.
ANYTHING = "…"
_LITERAL = r'"((?:[^"\\]|\\.)*)"'


@cache
def sentences() -> tuple[str, ...]:
    """Every string of the package, of its build and of its C++ part; values are ``…``."""
    found: list[str] = []
    for folder in ("gralora", "cmake/gralora_build"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += _strings(ast.parse(path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "csrc").rglob("*.[hc]*")):
        text = path.read_text(encoding="utf-8")
        for run in re.finditer(rf"{_LITERAL}(?:\s*{_LITERAL})*", text):
            found.append("".join(re.findall(_LITERAL, run[0])))
    return tuple(found)


def _strings(tree: ast.AST) -> Iterator[str]:
    constants = _constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(_part(part, constants) for part in node.values)


def _part(part: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    if isinstance(part.value, ast.Name) and part.value.id in constants:
        value = constants[part.value.id]
        return repr(value) if part.conversion == ord("r") else value
    return ANYTHING


def _constants(tree: ast.AST) -> dict[str, str]:
    """Names that the file gives to strings, or imports in capital letters."""
    found = {"TENSORS_NAME": "adapter_model.safetensors", "_PICKLE_NAME": "adapter_model.bin"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    found[target.id] = node.value.value
    return found


def is_said(quote: str) -> bool:
    """Whether the product has a sentence with these words; ``…`` stands for anything in it."""
    parts = [re.escape(part) for part in quote.split(ANYTHING)]
    pattern = re.compile(".*?".join(parts), re.DOTALL)
    return any(pattern.search(sentence) for sentence in sentences())
