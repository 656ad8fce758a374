"""Makes docs/reference.md from the signatures and docstrings of gralora's public names.

python docs/build_reference.py            rewrites the page
python docs/build_reference.py --check    says whether the page is that of the docstrings
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from reference_names import Entry, Member, Module, public_modules
from reference_text import Link, markdown, signature

PAGE = Path(__file__).parent / "reference.md"
_TITLE = "Reference"
_INTRODUCTION = """\
Every public name, its signature and its docstring. `python docs/build_reference.py` makes this page
from them: change the docstring, not the page. Names that are not here may change in any version.
[models.md](models.md), [peft.md](peft.md), [inspect.md](inspect.md) and the other pages show them
at work; commands describe themselves with `--help`."""


def render() -> str:
    """The whole page."""
    modules = public_modules()
    anchors = _anchors(modules)
    parts = [f"# {_TITLE}", _INTRODUCTION, _contents(modules, anchors)]
    for module in modules:
        parts += [f"## {module.name}", _described(module.value, _linker(anchors, module.name))]
        if module.elsewhere:
            links = ", ".join(f"[`{name}`](#{anchors[name]})" for name in module.elsewhere)
            parts.append(f"Here too: {links}.")
        for entry in module.entries:
            parts += _entry(entry, anchors)
    return "\n\n".join(parts) + "\n"


def _contents(modules: list[Module], anchors: dict[str, str]) -> str:
    rows = ["| module | names |", "| --- | --- |"]
    for module in modules:
        links = (f"[{e.name.rpartition('.')[2]}](#{anchors[e.name]})" for e in module.entries)
        rows.append(f"| [`{module.name}`](#{anchors[module.name]}) | {', '.join(links)} |")
    return "\n".join(rows)


def _entry(entry: Entry, anchors: dict[str, str]) -> list[str]:
    module = entry.name.rpartition(".")[0]
    parts = [f"### {entry.name}", _code(signature(entry.name, entry.value))]
    if entry.bases:
        links = ", ".join(f"[`{name}`](#{anchors[name]})" for name in entry.bases)
        parts.append(f"It also has the methods of {links}.")
    parts.append(_described(entry.value, _linker(anchors, module, entry.name)))
    for member in entry.members:
        parts += [f"#### {member.name}", _code(_call(member))]
        parts.append(_described(member.value, _linker(anchors, module, entry.name)))
    return parts


def _call(member: Member) -> str:
    if not member.is_property:
        return signature(member.name, member.value, takes_self=member.takes_self)
    return f"{member.name}: {inspect.signature(member.value).return_annotation}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _described(value: object, link: Link) -> str:
    # Not inspect.getdoc(): what a class inherits describes another one.
    return markdown(value.__doc__ or "", link)


def _anchors(modules: list[Module]) -> dict[str, str]:
    """Anchors of all headings by full names, numbered by renderers where headings are alike."""
    headings = [(_TITLE, _TITLE)]
    for module in modules:
        headings.append((module.name, module.name))
        for entry in module.entries:
            headings.append((entry.name, entry.name))
            headings += [(f"{entry.name}.{_last(m.name)}", m.name) for m in entry.members]
    counts: Counter[str] = Counter()
    anchors = {}
    for name, heading in headings:
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors[name] = f"{plain}-{counts[plain]}" if counts[plain] else plain
        counts[plain] += 1
    return anchors


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _linker(anchors: dict[str, str], *scopes: str) -> Link:
    """Finds what a role names: in the class, in the module, or by its full name."""
    names = [f"{scope}." for scope in reversed(scopes)]

    def link(target: str) -> str | None:
        return next((anchors[s + target] for s in [*names, ""] if s + target in anchors), None)

    return link


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the page; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="docs/build_reference.py",
        description=__doc__,
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    page = render()
    if options.check:
        before = options.page.read_text(encoding="utf-8")
        if before != page:
            print(f"{options.page.name} is not that of the docstrings: run {parser.prog}")
        return int(before != page)
    options.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
