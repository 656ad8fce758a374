"""Functions of Python's standard library and their docstrings, as prompts and completions."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from finetuning.text import HELD_OUT_MODULES, TRAIN_MODULES, module_source

INSTRUCTION = "Write the docstring of this Python function:\n\n"
# In characters: with the instruction some 250 tokens of SmolLM2's.
LONGEST_FUNCTION = 700
LONGEST_DOCSTRING = 300

Example = dict[str, Any]


def train_examples(*, chat: bool) -> list[Example]:
    """The functions of the modules to learn from; see :func:`examples` for `chat`."""
    return [e for name in TRAIN_MODULES for e in examples(module_source(name), chat=chat)]


def held_out_examples(count: int, *, chat: bool) -> list[Example]:
    """Functions of other modules, spread over them, at most `count`."""
    found = [e for name in HELD_OUT_MODULES for e in examples(module_source(name), chat=chat)]
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def examples(source: str, *, chat: bool) -> Iterator[Example]:
    """Each short function of `source` that has a docstring, in TRL's format "prompt-completion".

    Args:
        source: a module's.
        chat: messages, for a tokenizer with a chat template, instead of plain text.

    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        docstring = inspect.cleandoc(ast.get_docstring(node) or "")
        del node.body[0]
        function = ast.unparse(node)
        if not 0 < len(docstring) <= LONGEST_DOCSTRING or len(function) > LONGEST_FUNCTION:
            continue
        yield _example(INSTRUCTION + function, docstring, chat=chat)


def _example(prompt: str, completion: str, *, chat: bool) -> Example:
    if not chat:
        return {"prompt": f"{prompt}\n\n", "completion": completion}
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }
