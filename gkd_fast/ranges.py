"""Ranges of settings, written beside the fields: ``epochs: Annotated[int, POSITIVE] = 5``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from gkd_fast.errors import InputError


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may have; of a setting that is a pair, both.

    Attributes:
        expected: the range in words, behind "expected".
        holds: whether a number lies in it.
    """

    expected: str
    holds: Callable[[float], bool]


POSITIVE = Range("a positive number", lambda value: value > 0)
NOT_NEGATIVE = Range("zero or a positive number", lambda value: value >= 0)
FRACTION = Range("a number from 0 to 1", lambda value: 0 <= value <= 1)


def option_name(field: str) -> str:
    """The command line's name of a setting."""
    return f"--{field.replace('_', '-')}"


def check_ranges(settings: Any, name: Callable[[str], str] = option_name) -> None:
    """Check every field of a dataclass that has a range.

    Args:
        settings: the dataclass.
        name: of a field, for the message.

    Raises:
        InputError: naming the setting, what was expected and what was given.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for limit in (item for item in getattr(hints[field.name], "__metadata__", ()) if isinstance(item, Range)):
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(limit.holds(number) for number in values):
                raise InputError(f"{name(field.name)}: expected {limit.expected}, got {value}")
