"""Options that decide where the settings start, and options that may stand without a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd_fast.cli import train
from gkd_fast.cli.first_stage import first_stage
from gkd_fast.errors import InputError

NAMES = ("resume", "output", "preset", "data", "compile")


@pytest.mark.parametrize(
    ("arguments", "resume", "compile"),
    [
        ("", None, None),
        ("--resume", "on", None),
        ("--resume auto --amp", "auto", None),
        ("--resume=off", "off", None),
        ("--resume --output x", "on", None),
        ("--compile --resume", "on", "on"),
        ("--compile off", None, "off"),
        ("--no-compile --amp", None, "off"),
        ("--compile --no-compile", None, "off"),
    ],
)
def test_options_alone(arguments: str, resume: str | None, compile: str | None) -> None:
    found, _ = first_stage(arguments.split(), *NAMES)
    assert (found.resume, found.compile) == (resume, compile)


@pytest.mark.parametrize("flag", ["--data-root", "--data_root"])
def test_both_spellings_name_the_data(flag: str) -> None:
    found, rest = first_stage([flag, "x", "--amp"], "data_root")
    assert (found.data_root, rest) == ("x", ["--amp", "--data-root=x"])
    assert train.read([flag, "x"]).preset == ""  # somebody's own images, for which settings are chosen


def test_everything_else_is_left_in_order() -> None:
    before, after = ["--methods", "gkd", "fgd@20"], ["--seeds", "-1", "2", "--classes=x y", "-h"]
    found, rest = first_stage([*before, "--resume", "--output", "a b", *after], *NAMES)
    assert found.output == "a b"
    assert rest == [*before, *after, "--resume=on", "--output=a b"]


def test_the_last_of_two_counts_in_both_stages() -> None:
    assert train.read(["--data", "voc", "--data", "coco"]).optim.epochs == 24
    config = train.read("--output one --no-compile --output=two --epochs 2 --epochs 3".split())
    assert (config.run.output, config.run.compile, config.optim.epochs) == (Path("two"), "off", 3)


def test_a_value_of_another_option_is_not_taken_for_an_option() -> None:
    config = train.read(["--preset", "", "--val-split", "data", "--train-split", "resume"])
    assert (config.data.val_split, config.data.train_split, config.run.resume) == ("data", "resume", "off")


def test_a_missing_value_is_one_line() -> None:
    with pytest.raises(InputError, match="--output: expected one argument; --help shows the options"):
        train.read(["--epochs", "1", "--output"])
    with pytest.raises(InputError, match="--resume"):
        train.read(["--resume", "perhaps"])


def test_a_method_has_two_names() -> None:
    assert train.read(["--terms", "gkd+fgd"]) == train.read(["--method", "gkd+fgd"])
