"""The reference: it is that of the docstrings, and these say what a caller has to know."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import build_reference
import pytest
from reference_names import public_modules
from reference_text import markdown, signature

ROOT = Path(__file__).parents[2]
pytest.importorskip("peft", reason="peft is not installed")
MODULES = public_modules()
CLASSES = {e.name: e.value for m in MODULES for e in m.entries if inspect.isclass(e.value)}
FUNCTIONS = {e.name: e.value for m in MODULES for e in m.entries if e.name not in CLASSES}
MEMBERS = {f"{e.name}.{m.name}": m.value for mod in MODULES for e in mod.entries for m in e.members}
EVERYTHING = {**{m.name: m.value for m in MODULES}, **CLASSES, **FUNCTIONS, **MEMBERS}
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_page_is_that_of_the_docstrings() -> None:
    assert build_reference.render() == PAGE, "run python docs/build_reference.py"


def test_check_refuses_a_page_that_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(shutil.copy(ROOT / "docs" / "reference.md", tmp_path))
    assert build_reference.main(["--check", "--page", str(page)]) == 0
    page.write_text(PAGE.replace("frozen", "molten", 1), encoding="utf-8")
    assert build_reference.main(["--check", "--page", str(page)]) == 1
    assert "run docs/build_reference.py" in capsys.readouterr().out
    assert build_reference.main(["--page", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == PAGE


@pytest.mark.parametrize("name", EVERYTHING)
def test_name_has_a_docstring_of_its_own_and_a_heading(name: str) -> None:
    assert (EVERYTHING[name].__doc__ or "").strip()
    heading = name if name not in MEMBERS else ".".join(name.split(".")[-2:])
    assert re.search(rf"^#+ {re.escape(heading)}$", PAGE, re.MULTILINE)


def _section(docstring: str | None, *titles: str) -> str:
    """What stands indented below a title, without indentation."""
    text = inspect.cleandoc(docstring or "") + "\n"
    found = re.findall(rf"^(?:{'|'.join(titles)}):\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    return "".join(textwrap.dedent(part) for part in found)


def _entries(docstring: str | None, *titles: str) -> dict[str, str]:
    section = re.sub(r"\n +", " ", _section(docstring, *titles))
    return dict(re.findall(r"^\*{0,2}(\w+): (.*)$", section, re.MULTILINE))


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_every_parameter_is_explained(name: str) -> None:
    value = {**FUNCTIONS, **CLASSES}[name]
    parameters = set(inspect.signature(value).parameters)
    assert parameters - {"self"} <= set(_entries(value.__doc__, "Args", "Attributes"))


METHODS = {
    name: value
    for name, value in MEMBERS.items()
    if set(inspect.signature(value).parameters) - {"self"}
}


@pytest.mark.parametrize("name", METHODS)
def test_arguments_of_a_method_are_its_parameters(name: str) -> None:
    value = METHODS[name]
    explained = list(_entries(value.__doc__, "Args"))
    parameters = [p for p in inspect.signature(value).parameters if p != "self"]
    assert explained in ([], parameters)


def _raised(value: Any) -> Iterator[type]:
    """Python's exceptions that a function itself raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind = getattr(builtins, ast.unparse(node.exc.func), None)
            if isinstance(kind, type):
                yield kind


@pytest.mark.parametrize("name", [*FUNCTIONS, *MEMBERS])
def test_what_a_function_raises_itself_is_in_its_docstring(name: str) -> None:
    value = EVERYTHING[name]
    for error in _raised(value):
        names = "|".join(kind.__name__ for kind in error.__mro__[:-3])
        assert re.search(rf"\b({names})\b", value.__doc__), error


def _takes_tensors(value: Any) -> list[str]:
    parameters = inspect.signature(value).parameters.values()
    return [p.name for p in parameters if re.match(r"Tensor\b", str(p.annotation))]


TENSORS = [name for name, value in {**FUNCTIONS, **MEMBERS}.items() if _takes_tensors(value)]


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_with_their_shapes(name: str) -> None:
    explained = _entries(EVERYTHING[name].__doc__, "Args")
    for parameter in _takes_tensors(EVERYTHING[name]):
        assert re.search(r"``\[.*\]``|^(as in|see) |tensor", explained[parameter]), parameter


@pytest.mark.parametrize(
    "name",
    [n for n, v in FUNCTIONS.items() if inspect.signature(v).return_annotation == "Tensor"],
)
def test_the_tensor_that_a_function_gives_has_a_shape(name: str) -> None:
    assert re.search(r"``\[.*\]``", _section(FUNCTIONS[name].__doc__, "Returns"))


def _anchors() -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{plain}-{seen[plain]}" if plain in seen else plain)
        seen[plain] = seen.get(plain, 0) + 1
    return found


def test_links_within_the_page_lead_to_headings() -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= set(_anchors())


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / "docs" / link).exists()


DOCSTRING = """Title with ``code``.

A :func:`known` and an :class:`unknown`
name.

====== =====
factor shape
====== =====
A      ``[2]``
====== =====

Args:
    x: first
        line.
    **more: likewise.

Returns:
    A number.

- one
- two
  lines
"""


def test_docstrings_become_markdown() -> None:
    assert markdown(DOCSTRING, {"known": "there"}.get) == (
        "Title with `code`.\n\n"
        "A [`known`](#there) and an `unknown` name.\n\n"
        "| factor | shape |\n| --- | --- |\n| A | `[2]` |\n\n"
        "**Arguments**\n\n- `x`: first line.\n- `**more`: likewise.\n\n"
        "**Returns**\n\nA number.\n\n"
        "- one\n- two lines"
    )


def test_lines_are_broken_outside_of_code() -> None:
    words = f"{'word ' * 19}``code of several words`` end"
    lines = markdown(words, lambda _: None).splitlines()
    assert lines == ["word " * 18 + "word", "`code of several words` end"]


def test_signatures_keep_types_defaults_and_the_star() -> None:
    def call(self: object, a: int, *, name: str = "x", other=None) -> bool:  # type: ignore[no-untyped-def]
        """Nothing."""

    shown = signature("call", call, takes_self=True)
    assert shown == 'call(a: int, *, name: str = "x", other=None) -> bool'
