"""Nested settings under flat names: reading, changing, checking."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from gkd_fast.config import Config, validate
from gkd_fast.errors import InputError
from gkd_fast.options import MAIN, PREFIX, UNNAMED, Alias, changed, check_options, options_of, values_of
from gkd_fast.ranges import POSITIVE, Range


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    kind: Annotated[str, UNNAMED] = "plain"
    """Kind of the part."""
    size: Annotated[float, POSITIVE] = 1.0
    """Size of the part, in
    metres."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of settings."""

    first: Annotated[Part, PREFIX] = Part()
    method: Annotated[str, MAIN, Alias("terms")] = "a"
    """Its method."""
    pair: Annotated[tuple[float, float], Range("two numbers below 2", lambda number: number < 2)] = (0.0, 1.0)
    """Two numbers."""
    many: tuple[int, ...] = ()
    mode: Literal["auto", "on", "off"] = "auto"
    file: Path | None = None
    flag: bool = False


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All."""

    name: str = ""
    group: Group = field(default_factory=Group)


def test_names_are_flat() -> None:
    options = {option.name: option for option in options_of(Whole)}
    assert list(options) == ["name", "first", "first_size", "method", "pair", "many", "mode", "file", "flag"]
    assert options["first_size"].path == ("group", "first", "size")
    assert (options["first_size"].flag, options["first_size"].group) == ("--first-size", "group")
    assert options["first_size"].text == "First's size of the part, in metres."
    assert options["method"].text == "Its method."
    assert MAIN in options["method"].marks


def test_names_of_the_configuration_are_unique() -> None:
    names = [name for option in options_of(Config) for name in (option.name, *option.aliases)]
    assert len(set(names)) == len(names)


def test_values_go_in_and_out() -> None:
    values = {"first": "big", "first_size": 3, "terms": "b", "pair": [0.5, 1], "many": [1, 2], "file": "a/b"}
    whole = changed(Whole(), values | {"mode": True, "name": "n"})
    assert whole.group == Group(
        first=Part(kind="big", size=3.0), method="b", pair=(0.5, 1.0), many=(1, 2), mode="on", file=Path("a/b")
    )
    assert changed(Whole(), values_of(whole)) == whole


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"first_sise": 1}, TypeError, r"first_sise: expected an option's name \(first_size\?\)"),
        ({"first_size": "1"}, TypeError, "first_size: expected float, got '1'"),
        ({"first_size": True}, TypeError, "first_size: expected float, got True"),
        ({"many": [1, 2.5]}, TypeError, r"many: expected tuple of int, got \[1, 2.5\]"),
        ({"pair": [1]}, TypeError, "pair: expected tuple of float and float, got"),
        ({"file": 3}, TypeError, "file: expected Path or None, got 3"),
        ({"flag": 1}, TypeError, "flag: expected bool, got 1"),
        ({"mode": "maybe"}, InputError, "mode: expected one of auto, on, off, got 'maybe'"),
    ],
)
def test_unusable_values_are_named(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        changed(Whole(), values)


def test_ranges_stand_beside_the_fields() -> None:
    check_options(Whole())
    with pytest.raises(InputError, match="--first-size: expected a positive number, got -1"):
        check_options(changed(Whole(), {"first_size": -1}))
    with pytest.raises(InputError, match=r"--pair: expected two numbers below 2, got \(0.0, 2.0\)"):
        check_options(changed(Whole(), {"pair": (0, 2)}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student_width": 0}, "--student-width: expected a positive number, got 0"),
        ({"teacher_head": -1}, "--teacher-head: expected a positive number, got -1"),
        ({"size_buckets": 0}, "--size-buckets: expected a positive number"),
        ({"workers": -1}, "--workers: expected zero or a positive number, got -1"),
        ({"density_quantile": 1.5}, "--density-quantile: expected a number from 0 to 1, got 1.5"),
        ({"teacher_ap": 39.8}, r"--teacher-ap: expected a fraction such as 0\.398, got 39\.8"),
        ({"long_side": 100}, "--long-side: expected at least --short-side 128, got 100"),
    ],
)
def test_settings_are_validated_however_they_are_made(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(changed(Config(), values))
