"""Takes values out of a config that nobody vouches for, each checked for type and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

WHO = "load_adapter"
MAX_RANK = 1_000_000
MAX_NAME_LENGTH = 1000
_MAX_NAMES = 200_000
# Beyond any scale that numbers survive; also keeps huge integers from overflowing a float.
_MAX_NUMBER = 1e30

T = TypeVar("T")


def refuse(field: str, value: object, accepted: str) -> NoReturn:
    """Raise the error for a field of a config.

    Raises:
        ValueError: always.

    """
    raise ValueError(f"{WHO}: {field} of the config must be {accepted}, got {field}={value!r:.200}")


def take(
    content: Mapping[str, Any], field: str, check: Callable[[str, Any], T], default: Any = ...
) -> T:
    """The checked value of a field; a field without a default is required.

    Raises:
        ValueError: a required field is missing, or `check` refuses the value.

    """
    if field in content:
        return check(field, content[field])
    if default is ...:
        raise ValueError(f"{WHO}: the config must have the field {field!r}, got {sorted(content)}")
    return default  # type: ignore[no-any-return]


def rank(field: str, value: Any) -> int:
    """An int from 1 to :data:`MAX_RANK`."""
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        refuse(field, value, f"an int from 1 to {MAX_RANK}")
    return value


def rank_or_zero(field: str, value: Any) -> int:
    """An int from 0 to :data:`MAX_RANK`."""
    if type(value) is not int or not 0 <= value <= MAX_RANK:
        refuse(field, value, f"an int from 0 to {MAX_RANK}")
    return value


def number(field: str, value: Any) -> float:
    """A finite int or float of a size that can scale something."""
    if type(value) not in (int, float) or not abs(value) <= _MAX_NUMBER:
        refuse(field, value, f"a number within {_MAX_NUMBER:g}")
    return value  # type: ignore[no-any-return]


def probability(field: str, value: Any) -> float:
    """A number in [0, 1]."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        refuse(field, value, "a number in [0, 1]")
    return float(value)


def flag(field: str, value: Any) -> bool:
    """True or False."""
    if type(value) is not bool:
        refuse(field, value, "true or false")
    return value


def text_or_none(field: str, value: Any) -> str | None:
    """A string, or None."""
    if value is not None and not isinstance(value, str):
        refuse(field, value, "a string or null")
    return value


def module_name(field: str, value: Any) -> str:
    """A module's name or the end of one."""
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_NAME_LENGTH
        or not value.isprintable()
        or ".." in value
        or "/" in value
        or "\\" in value
    ):
        refuse(
            field, value, f'a module\'s name: printable, at most {MAX_NAME_LENGTH} characters, no '
            '"..", "/" or "\\"'
        )  # fmt: skip
    return value


def module_names(field: str, value: Any) -> tuple[str, ...]:
    """Names of modules, without repetitions; null is none at all."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_NAMES:
        refuse(field, value, f"a list of at most {_MAX_NAMES} module names")
    return tuple(dict.fromkeys(module_name(field, name) for name in value))


def targets(field: str, value: Any) -> str | tuple[str, ...]:
    """A regular expression, which is never run, or a list of names that is not empty."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not value:
        refuse(field, value, "a string or a list of module names that is not empty")
    return module_names(field, value)


def targets_or_none(field: str, value: Any) -> str | tuple[str, ...]:
    """As :func:`targets`; the list may be empty."""
    return () if value == [] else targets(field, value)


def layer_indexes(field: str, value: Any) -> tuple[int, ...] | None:
    """Layer numbers; null, and as in PEFT an empty list, is every layer."""
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if not all(type(index) is int and 0 <= index <= _MAX_NAMES for index in values):
        refuse(field, value, "a layer number or a list of layer numbers")
    return tuple(values) or None


def layer_patterns(field: str, value: Any) -> tuple[str, ...]:
    """Names of module lists, or regular expressions of them, which are never run."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(pattern, str) for pattern in values):
        refuse(field, value, "a string or a list of strings")
    return tuple(pattern for pattern in values if pattern)


def grid(field: str, value: Any) -> tuple[int, int]:
    """``(k_out, k_in)`` from an int or a pair."""
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(type(k) is int and 1 <= k <= MAX_RANK for k in pair):
        refuse(field, value, "an int from 1 up or a pair [k_out, k_in] of them")
    return pair[0], pair[1]


def pattern(check: Callable[[str, Any], T]) -> Callable[[str, Any], dict[str, T]]:
    """Check of an object that gives modules, by full name, a value each."""

    def check_pattern(field: str, value: Any) -> dict[str, T]:
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > _MAX_NAMES:
            refuse(field, value, "an object of full module names")
        return {
            module_name(field, name): check(f"{field}[{name!r}]", entry)
            for name, entry in value.items()
        }

    return check_pattern
