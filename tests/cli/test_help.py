"""``--help`` is short and grouped, ``--help-all`` shows every option with its unit and default."""

from __future__ import annotations

import re

import pytest

from gkd_fast.cli import convert, evaluate, export, inspect, predict, push_to_hub, report, study, train
from gkd_fast.config import Config
from gkd_fast.options import MAIN, options_of

COMMANDS = (inspect, train, study, evaluate, predict, export, convert, report, push_to_hub)


def shown(command, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        command.main([option])
    assert end.value.code == 0
    return capsys.readouterr().out


def flags(text: str) -> set[str]:
    return set(re.findall(r"^[│ ] {,2}(--[a-z][a-z0-9-]*)", text, re.MULTILINE))


def test_the_short_help_has_the_main_options_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(train, "--help", capsys)
    main = {option.flag for option in options_of(Config) if MAIN in option.marks}
    assert flags(text) == main
    assert 20 < len(main) < 45
    for section in ("data", "networks", "distillation", "optimisation", "run"):
        assert f" {section} options " in text
    assert "further options: gkd-fast train --help-all" in text
    assert len(text.splitlines()) < 140
    assert shown(train, "-h", capsys) == text


def test_the_whole_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(train, "--help-all", capsys)
    assert flags(text) == {option.flag for option in options_of(Config)}
    assert text.count("(default:") == len(options_of(Config))
    assert "further options" not in text
    for words in ("pixels", "Teacher's backbone", "Student's backbone"):
        assert words in text


def test_every_option_has_a_text() -> None:
    for option in options_of(Config):
        assert option.text.endswith((".", ")")), option.name


def test_defaults_are_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help", "--preset", "bccd"])
    assert re.search(r"--short-side INT.*?\(default: 240\)", capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.split(".")[-1])
def test_every_command_has_both(command, capsys: pytest.CaptureFixture[str]) -> None:
    name = command.__name__.split(".")[-1].replace("_", "-")
    short, whole = (shown(command, option, capsys) for option in ("--help", "--help-all"))
    assert short.startswith(f"usage: gkd-fast {name}")
    assert flags(short) <= flags(whole)
    assert (len(flags(short)) < len(flags(whole))) == ("--help-all" in short)


def test_a_study_hides_what_it_has_in_other_options(capsys: pytest.CaptureFixture[str]) -> None:
    found = flags(shown(study, "--help-all", capsys))
    assert {"--methods", "--seeds", "--jobs", "--epochs"} <= found
    assert not {"--seed", "--terms", "--method"} & found
