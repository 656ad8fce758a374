"""The page on the architecture: what it names is there, and folders import what it says."""

from __future__ import annotations

import ast
import re

import pytest
from docs_pages import anchors
from docs_readers import ROOT, open_page

PAGE = open_page("architecture")
PACKAGE = ROOT / "gralora"
CODE = re.findall(r"`([^`\n]+)`", PAGE.text)
PATHS = sorted({c for c in CODE if re.fullmatch(r"[\w.-]+/[\w./-]*", c) and not c.endswith("_")})
# `name` in `path`, and lists of them; also `name` (`path`) and `name` of `path`.
NAMED = sorted(set(re.findall(r"`(\w+)`,? (?:in|of|\()\s?`([\w./-]+\.\w+)`", PAGE.words)))


@pytest.mark.parametrize("path", PATHS)
def test_paths_lead_to_files_and_folders(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize(("name", "path"), NAMED, ids=[f"{n} in {p}" for n, p in NAMED])
def test_names_are_in_the_files_that_are_said_to_have_them(name: str, path: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))


def test_the_page_names_files_of_each_half() -> None:
    assert min(sum(p.startswith(half) for p in PATHS) for half in ("csrc/", "gralora/")) > 15
    assert len(NAMED) > 10


ROWS = re.findall(r"^\| `gralora/([\w.]+)/?` \| [^|]+ \| ([^|]+) \|$", PAGE.text, re.MULTILINE)


def _imports(folder: str) -> set[str]:
    """The folders and files of the package that one of them imports from."""
    own = PACKAGE / folder
    found = set()
    for path in own.rglob("*.py") if own.is_dir() else [own]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "gralora":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gralora."):
                found.add(str(node.module).split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gralora.")}
    return found - {own.stem}


@pytest.mark.parametrize(("folder", "names"), ROWS, ids=[folder for folder, _ in ROWS])
def test_a_folder_imports_what_the_table_says(folder: str, names: str) -> None:
    assert _imports(folder) == set(re.findall(r"`(\w+)`", names))


def test_the_table_has_every_folder_of_the_package() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= {folder for folder, _ in ROWS}


LINKS = sorted(set(re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGE.text)))


@pytest.mark.parametrize(("link", "anchor"), LINKS, ids=[f"{a}#{b}" for a, b in LINKS])
def test_links_lead_to_headings_of_pages(link: str, anchor: str) -> None:
    target = PAGE.path.parent / link if link else PAGE.path
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
