"""The build backend: scikit-build-core's hooks, told which torch and which CUDA compiler to use.

Every hook of PEP 517 and PEP 660 is here. Each one first makes a plan (``plan.py``: the torch that
will run the extension, the CUDA toolkit or the reason why there is none), then calls
scikit-build-core with that plan as a CMake variable.

Settings, given to pip, uv or build as ``-C name=value``:

* ``gralora.torch=DIR``: build against the torch package in folder DIR.
* ``gralora.cuda=auto|on|off``: ``on`` turns a CUDA build that is not possible into an error.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

from . import build_dir, plan, settings
from .errors import BuildError

ConfigSettings = dict[str, str | list[str]] | None

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Print a BuildError without the traceback that a front end would show."""
    try:
        yield
    except BuildError as error:
        sys.stdout.flush()
        print(f"gralora: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _scikit_build() -> ModuleType:
    """scikit-build-core's hooks; a build without isolation may lack them."""
    try:
        from scikit_build_core import build
    except ModuleNotFoundError as error:
        raise BuildError(
            f"build isolation is off, and this environment lacks {error.name}.\n"
            "Run pip install 'scikit-build-core>=1.1' first."
        ) from None
    return build


def get_requires_for_build_sdist(config_settings: ConfigSettings = None) -> list[str]:
    """Requirements of a source archive: scikit-build-core's own, no torch."""
    with _readable_errors():
        build = _scikit_build()
        _, rest = settings.split(config_settings)
        return build.get_requires_for_build_sdist(rest)


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    """scikit-build-core's requirements, and what the target environment lacks."""
    with _readable_errors():
        build = _scikit_build()
        ours, rest = settings.split(config_settings)
        return [*build.get_requires_for_build_wheel(rest), *plan.missing_requirements(ours)]


def get_requires_for_build_editable(config_settings: ConfigSettings = None) -> list[str]:
    """The same as for a wheel."""
    with _readable_errors():
        build = _scikit_build()
        ours, rest = settings.split(config_settings)
        return [*build.get_requires_for_build_editable(rest), *plan.missing_requirements(ours)]


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: ConfigSettings = None
) -> str:
    """Write the wheel's metadata, with the torch version that the wheel will need."""
    with _readable_errors():
        build = _scikit_build()
        ours, rest = settings.split(config_settings)
        plan.decide(ours)
        return build.prepare_metadata_for_build_wheel(metadata_directory, rest)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: ConfigSettings = None
) -> str:
    """The same as for a wheel."""
    with _readable_errors():
        build = _scikit_build()
        ours, rest = settings.split(config_settings)
        plan.decide(ours)
        return build.prepare_metadata_for_build_editable(metadata_directory, rest)


def build_wheel(
    wheel_directory: str,
    config_settings: ConfigSettings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel against the planned torch."""
    with _readable_errors(), _planned(config_settings) as rest:
        build = _scikit_build()
        return build.build_wheel(wheel_directory, rest, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: ConfigSettings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build an editable wheel against the planned torch."""
    with _readable_errors(), _planned(config_settings) as rest:
        build = _scikit_build()
        return build.build_editable(wheel_directory, rest, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: ConfigSettings = None) -> str:
    """Write a source archive; needs neither torch nor a compiler."""
    with _readable_errors():
        build = _scikit_build()
        _, rest = settings.split(config_settings)
        return build.build_sdist(sdist_directory, rest)


@contextlib.contextmanager
def _planned(config_settings: ConfigSettings) -> Iterator[dict[str, str | list[str]]]:
    """Make the plan and yield scikit-build-core's settings, with the build folder locked."""
    ours, rest = settings.split(config_settings)
    decided = plan.decide(ours)
    print(decided.describe(), flush=True)
    with build_dir.prepared(decided, rest) as complete:
        yield complete
