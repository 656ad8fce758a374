"""Docstrings and signatures as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

WIDTH = 110
_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Warns|Shape):$")
_TITLES = {"Args": "Arguments"}
_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \w+)*): (.*)")
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_RULE = re.compile(r"=+( +=+)*$")
# Spaces of code, while lines are broken.
_UNBROKEN = "\0"
# Between an entry's name and its words.
_MARK = "\1"

Link = Callable[[str], str | None]


def markdown(docstring: str, link: Link) -> str:
    """A docstring of Google's style as Markdown.

    Args:
        docstring: with RST's roles, double backticks and simple tables.
        link: the anchor of what a role names, or None where the page has no such heading.

    """
    lines = inspect.cleandoc(docstring).splitlines()
    return "\n\n".join(_inline(block, link) for block in _blocks(lines))


def signature(name: str, value: Callable[..., Any], *, takes_self: bool = False) -> str:
    """A call with types and defaults, on one line if it fits there.

    Args:
        name: how it is called.
        value: the function or class.
        takes_self: whether the first parameter is left out.

    """
    found = inspect.signature(value)
    parameters = list(found.parameters.values())[takes_self:]
    words = list(_words(parameters))
    result = found.return_annotation
    ending = "" if inspect.isclass(value) or result is found.empty else f" -> {_type(result)}"
    line = f"{name}({', '.join(words)}){ending}"
    if len(line) <= WIDTH - 10:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){ending}"])


def _words(parameters: list[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        yield _parameter(parameter)


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    typed = parameter.annotation is not parameter.empty
    text = f"{stars}{parameter.name}" + (f": {_type(parameter.annotation)}" if typed else "")
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    shown = f'"{default}"' if isinstance(default, str) else repr(default)
    if shown == "<factory>":
        # A dataclass makes an empty one of its own for each object.
        shown = "..."
    return f"{text} = {shown}" if typed else f"{text}={shown}"


def _type(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _blocks(lines: list[str]) -> Iterator[str]:
    """Paragraphs, lists, tables and sections, each as Markdown without its inline marks."""
    position = 0
    while position < len(lines):
        line = lines[position]
        end = _end_of_block(lines, position)
        if not line:
            end = position + 1
        elif _SECTION.match(line):
            inside = "\n".join(lines[position + 1 : end])
            yield f"**{_TITLES.get(line[:-1], line[:-1])}**"
            yield from _section(textwrap.dedent(inside).strip().splitlines())
        elif _RULE.match(line):
            yield _table(lines[position:end])
        elif line.startswith("- "):
            yield "\n".join(f"- {item}" for item in _items(lines[position:end], r"- (.*)"))
        else:
            yield " ".join(text.strip() for text in lines[position:end])
        position = end


def _end_of_block(lines: list[str], start: int) -> int:
    """Where the paragraph ends that starts there, or the section with all that is indented."""
    is_section = _SECTION.match(lines[start])
    for position in range(start + 1, len(lines)):
        line = lines[position]
        if is_section and line and not line.startswith(" "):
            return position
        if not is_section and (not line or _SECTION.match(line)):
            return position
    return len(lines)


def _section(lines: list[str]) -> Iterator[str]:
    """A section's body: a list where it has entries, and paragraphs elsewhere."""
    if lines and _ENTRY.match(lines[0]):
        entries = _items([line for line in lines if line], _ENTRY.pattern)
        yield "\n".join(f"- `{name}`: {text}" for name, text in (e.split(_MARK) for e in entries))
    else:
        yield from _blocks(lines)


def _items(lines: list[str], opening: str) -> list[str]:
    """Entries of a list, each on one line; the groups of its opening are parted by a mark."""
    items: list[str] = []
    for line in lines:
        found = re.match(opening, line)
        if found:
            items.append(_MARK.join(found.groups()))
        else:
            items[-1] += f" {line.strip()}"
    return items


def _table(lines: list[str]) -> str:
    columns = [found.span() for found in re.finditer("=+", lines[0])]
    starts = [start for start, _ in columns]
    rows = [
        [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        for line in lines
        if not _RULE.match(line)
    ]
    rows.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _inline(block: str, link: Link) -> str:
    def referred(found: re.Match[str]) -> str:
        anchor = link(found[1])
        return f"`{found[1]}`" if anchor is None else f"[`{found[1]}`](#{anchor})"

    text = _ROLE.sub(referred, block).replace("``", "`")
    return "\n".join(_broken(line) for line in text.splitlines())


def _broken(line: str) -> str:
    """A line as lines of the page's width; code stays whole."""
    if line.startswith("|"):
        return line
    whole = re.sub(r"`[^`]+`", lambda found: found[0].replace(" ", _UNBROKEN), line)
    indent = "  " if line.startswith("- ") else ""
    lines = textwrap.wrap(
        whole, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace(_UNBROKEN, " ")
