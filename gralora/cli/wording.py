"""Messages of the library in the words of the command line."""

from __future__ import annotations

import re

import click

# What the library calls by other names than the command's own.
_ALSO = {
    "adapter": ("directory",),
    "adapters": ("directory",),
    "k": ("k_in", "k_out"),
    "lora": ("directory",),
    "plot": ("path",),
    "rank": ("r",),
}
# Where a message names a parameter in the midst of a sentence.
_PHRASES = {
    "base": [(r"\(base and adapter are swapped\?\)", "(BASE and ADAPTER are swapped?)")],
    "dtype": [(r"must fit dtype\b", "must fit --dtype")],
    "overwrite": [(r"\(overwrite replaces\b", "(--overwrite replaces")],
    "rank": [
        (r"\bmust come with a rank\b", "must come with --rank"),
        (r"\band no rank\b", "and no --rank"),
        (r"\(give a rank\b", "(give --rank"),
    ],
}


def in_options(text: str) -> str:
    """A message with the names of the running command's options for those of parameters.

    ``"weights must be …, got k=4"`` is ``"--weights must be …, got --k 4"``; an argument gets the
    name that the command's usage has for it, ``OUT`` for ``out``.
    """
    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context else ():
        option = _shown(parameter)
        for name in (parameter.name or "", *_ALSO.get(parameter.name or "", ())):
            # Where the word stands alone, what follows an equals sign is no part of a path.
            if isinstance(parameter, click.Option) and re.search(rf"(?<!\S){name}(?![^\s,])", text):
                text = re.sub(rf'(?<=[\s(]){name}=("?)(\w+)\1(?=[\s,;)]|$)', rf"{option} \2", text)
                text = re.sub(rf"\bby {name}(?=,)", f"by {option}", text)
            # Modules have factors and folders hold files; an argument has to be something.
            text = re.sub(rf"(^|: ){name}(?= must (?:be|come|end|lie)\b)", rf"\g<1>{option}", text)
        for pattern, replacement in _PHRASES.get(parameter.name or "", ()):
            text = re.sub(pattern, replacement, text)
    return text


def _shown(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    name = (parameter.name or "").upper()
    found = re.match(r"[A-Z_]+", parameter.metavar or name)
    return found[0] if found else name
