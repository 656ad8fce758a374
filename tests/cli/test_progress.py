"""Progress bars: on a terminal, for long work, and gone at the end."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import pytest
import rich.console

from gralora.cli import progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``shown(bar, updates, terminal=True, patience=0.0)``: what a bar prints."""

    def run(*updates: tuple[int, int], terminal: bool = True, patience: float = -1.0) -> str:
        file = io.StringIO()
        console = functools.partial(
            rich.console.Console, file=file, force_terminal=terminal, width=80
        )
        monkeypatch.setattr(rich.console, "Console", lambda **_: console())
        monkeypatch.setattr(progress, "_PATIENCE", patience)
        with progress.counted("layers") as update:
            for done, total in updates:
                update(done, total)
        return file.getvalue()

    return run


def test_long_work_on_a_terminal_shows_what_is_counted(shown) -> None:
    text = shown((1, 3), (2, 3))
    assert "layers" in text
    assert "2/3" in text


def test_short_work_shows_nothing(shown) -> None:
    assert shown((1, 2), (2, 2), patience=60) == ""


def test_what_is_no_terminal_gets_nothing(shown) -> None:
    assert shown((1, 3), (2, 3), terminal=False) == ""


def test_nothing_is_shown_before_the_first_step(shown) -> None:
    assert shown() == ""


def test_bar_is_wiped_at_the_end(shown) -> None:
    # "Up one line" and "erase it", as the last things that are printed.
    assert shown((1, 3)).endswith("\x1b[1A\x1b[2K")
