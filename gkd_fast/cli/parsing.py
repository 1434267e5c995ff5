"""The second stage of parsing: all options, from settings that stand for those that are not given."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import io
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any, TypeVar

import tyro

from gkd_fast.errors import InputError
from gkd_fast.options import MAIN, Option, changed, check_options, options_of, values_of

T = TypeVar("T")

# Titles of the groups of options, where the field of the settings has another name.
_TITLES = {"config": "", "model": "networks", "distill": "distillation", "optim": "optimisation"}


def parse(arguments: Sequence[str], command: str, description: str, start: T, *, without: Collection[str] = ()) -> T:
    """Settings, changed by the options of a command line and checked one by one.

    ``--help`` prints the main options and ends, ``--help-all`` all of them.

    Args:
        arguments: the command line.
        command: name of the command, behind ``gkd-fast``.
        description: of the command.
        start: a dataclass; a field that is `tyro.MISSING` has to be given.
        without: options that the command does not have, by name.

    Raises:
        InputError: for an unknown option, a value of the wrong type or out of its range.
    """
    options = [option for option in options_of(type(start)) if option.name not in without]
    main = [option for option in options if MAIN in option.marks] or options
    asked, rest = _help_asked(arguments)
    if asked:
        shown = options if asked == "all" else main
        more = f"\n{len(options) - len(shown)} further options: gkd-fast {command} --help-all"
        text = description + more * (len(shown) < len(options))
        _parsed(["--help"], command, text, start, shown, with_aliases=False)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            values = _parsed(rest, command, description, start, options, with_aliases=True)
    except SystemExit as end:
        hint = "--help shows all options" if len(main) == len(options) else "--help-all shows all options"
        raise InputError(
            f"{_with_nearest(_first_paragraph(complaint.getvalue()).rstrip('.'), options)}; {hint}"
        ) from end
    settings = changed(start, values)
    check_options(settings)
    return settings


def given_options(arguments: Sequence[str], kind: type) -> set[str]:
    """The names of the options of a dataclass that a command line names."""
    named = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    named = {name.removeprefix("--").replace("_", "-") for name in named}
    named |= {name.removeprefix("no-") for name in named}
    return {
        option.name
        for option in options_of(kind)
        if named & {own.replace("_", "-") for own in (option.name, *option.aliases)}
    }


def _help_asked(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", dest="shown", action="store_const", const="main")
    parser.add_argument("--help-all", dest="shown", action="store_const", const="all")
    found, rest = parser.parse_known_args(list(arguments))
    return found.shown, rest


def _parsed(
    arguments: list[str], command: str, description: str, start: Any, options: Sequence[Option], *, with_aliases: bool
) -> dict[str, Any]:
    """The value of every option, by name.

    tyro reads a flat dataclass of each group, made here, so that names do not follow the nesting of the settings.
    """
    groups: dict[str, list[Option]] = {"": []}
    for option in options:
        groups.setdefault(_TITLES.get(option.group, option.group), []).append(option)
    values = values_of(start)
    made = {title: _flat(title, members, values, with_aliases) for title, members in groups.items()}
    outer = made.pop("")
    kind: Any = make_dataclass("Options", [(title, type(group)) for title, group in made.items()], bases=(type(outer),))
    kind.__doc__ = ""
    found = tyro.cli(
        Annotated[kind, tyro.conf.OmitArgPrefixes],
        prog=f"gkd-fast {command}",
        description=description,
        args=arguments,
        default=kind(**vars(outer), **made),
    )
    return {
        option.name: getattr(getattr(found, title) if title else found, option.name)
        for title, members in groups.items()
        for option in members
    }


def _flat(title: str, options: list[Option], values: dict[str, Any], with_aliases: bool) -> Any:
    """A dataclass with a field for each option, and the options' values in it."""
    fields = [(option.name, Annotated[option.kind, _argument(option, with_aliases)]) for option in options]
    kind = make_dataclass(title or "Outer", fields)
    kind.__doc__ = inspect.getdoc(next(o.owner for o in options if not o.role)) if title else ""
    return kind(**{option.name: values[option.name] for option in options})


def _argument(option: Option, with_aliases: bool) -> Any:
    aliases = [f"--{name.replace('_', '-')}" for name in option.aliases] if with_aliases else None
    return tyro.conf.arg(help=option.text, aliases=aliases or None)


def _with_nearest(message: str, options: Sequence[Option]) -> str:
    """The message about an unknown option with the known one whose name is the most alike."""
    unknown = re.search(r"Unrecognized options: (--[\w-]+)", message)
    near = difflib.get_close_matches(unknown[1], [option.flag for option in options], 1) if unknown else []
    return f"{message} ({near[0]}?)" if near else message


def _first_paragraph(boxed: str) -> str:
    """The text between the head and the first rule below it of a framed message; a console without line-drawing
    letters has one rule more, under the head."""
    lines = [line.strip("│ ") for line in boxed.splitlines()[1:]]
    texts = [line if line.strip("─╭╮╰╯-") else "" for line in lines]
    return " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda text: not text, texts)))
