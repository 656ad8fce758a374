"""Errors of commands as one line on stderr, without a traceback, and with an exit code."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import click

from gralora.cli.wording import in_options
from gralora.injection.listing import shown

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130


class CommandError(click.ClickException):
    """A refusal or failure of one command; the exit code is 1.

    Args:
        command: its name, such as ``"merge"``.
        message: what is wrong.

    """

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command

    def show(self, file: Any = None) -> None:
        """Print the line to stderr."""
        click.echo(f"gralora {self.command}: {self.message}", file=file, err=file is None)


def shell_errors(
    command: str, *, writes: str | None = None, interrupted: str = "nothing was written"
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a command's function, below its click decorators; it may use the operators.

    OSError, TypeError, ValueError, RuntimeError, MemoryError and what an import has to say become
    one line and exit code 1, Ctrl-C one line and 130; warnings are printed as lines, too. Faults of
    the product itself keep their traceback.

    Args:
        command: its name, which opens each line.
        writes: the parameter that holds the path of what it writes, all of it at once.
        interrupted: what to say of the disk after Ctrl-C where nothing was written there yet.

    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            target = kwargs.get(writes) if writes else None
            before = _state(target)
            with warnings.catch_warnings():
                warnings.showwarning = _as_line(command)
                try:
                    with _interruptible():
                        import_module("gralora._api")
                    return function(*args, **kwargs)
                except (OSError, TypeError, ValueError, RuntimeError, MemoryError) as error:
                    if isinstance(error, (click.exceptions.Exit, click.Abort)):
                        raise
                    raise CommandError(command, _one_line(error, command)) from None
                except ImportError as error:
                    if isinstance(error, ModuleNotFoundError):
                        raise
                    raise CommandError(command, _one_line(error, command)) from None
                except KeyboardInterrupt:
                    left = interrupted if _state(target) == before else f"{target} is complete"
                    click.echo(f"gralora {command}: interrupted; {shown(left)}", err=True)
                    raise click.exceptions.Exit(INTERRUPTED) from None

        return run

    return decorate


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end where somebody within has swallowed it.

    Packages that torch imports do, and the command would go on as if nobody had pressed Ctrl-C.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    # Only the main thread may ask for signals; who ignores or handles them goes on doing so.
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def _state(path: object) -> object:
    """What tells a file, or the files of a folder, from those that replace them."""
    if not isinstance(path, Path):
        return None
    try:
        if path.is_dir():
            entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
            found = [(entry.name, entry.stat()) for entry in entries]
        else:
            found = [("", path.stat())]
    except OSError:
        return []
    return sorted((name, stat.st_ino, stat.st_mtime_ns) for name, stat in found)


def _one_line(error: BaseException | str, command: str) -> str:
    # The function of the library that refused is not what was typed, or was said already.
    function = rf"[a-z]+(_[a-z0-9]+)+|{re.escape(command.replace('-', '_'))}"
    text = re.sub(rf"^({function}): ", "", " ".join(str(error).split()))
    return shown(in_options(text)) or type(error).__name__


def _as_line(command: str) -> Callable[..., None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"gralora {command}: warning: {_one_line(message, command)}", err=True)

    return show
