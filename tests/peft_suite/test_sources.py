"""PEFT's tests are taken from the right version, and from nothing but a clean archive."""

from __future__ import annotations

import io
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from peft_suite_sources import prepare, unpack

pytest.importorskip("peft")


def _distribution(folder: Path, number: str) -> Path:
    (folder / "tests").mkdir(parents=True)
    (folder / "tests" / "test_a.py").write_text("def test_a(): pass\n")
    (folder / "pyproject.toml").write_text("[tool.pytest]\n")
    (folder / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: peft\nVersion: {number}\n")
    return folder


def _archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def test_tests_are_copied_and_the_sources_left_alone(tmp_path: Path) -> None:
    origin = _distribution(tmp_path / "origin", version("peft"))
    root = prepare(tmp_path / "cache", origin)
    copied = (root / "tests" / "test_a.py").read_bytes()
    assert copied == (origin / "tests" / "test_a.py").read_bytes()
    assert (root / "tests" / "__init__.py").exists()
    assert not (origin / "tests" / "__init__.py").exists()


def test_another_version_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    origin = _distribution(tmp_path / "origin", "0.0.1")
    with pytest.raises(ValueError, match=r"must be of the installed PEFT .*, got 0\.0\.1 in "):
        prepare(tmp_path / "cache", origin)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.tar.gz", "../outside")
    with pytest.raises(tarfile.FilterError):
        unpack(archive, tmp_path / "target")
    assert not (tmp_path / "outside").exists()


def test_an_archive_without_a_single_folder_is_refused(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.tar.gz", "one", "two")
    with pytest.raises(ValueError, match=r"must hold one folder, got \['one', 'two'\]"):
        unpack(archive, tmp_path / "target")
