"""Command lines: typed from the configuration, ending in one clear line where the input cannot be used."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import tyro

from gkd_fast import interrupt
from gkd_fast.config import PRESETS, Config, with_presets
from gkd_fast.errors import InputError, RunError
from gkd_fast.training import distributed

T = TypeVar("T")

# Options that may stand without a value, and what they then mean.
_SHORT = {
    "--resume": ["--resume", "on"],
    "--compile": ["--compile", "on"],
    "--no-compile": ["--compile", "off"],
}


def expanded(arguments: Sequence[str]) -> list[str]:
    """The command line with a value behind ``--resume`` and ``--compile``."""
    following = itertools.chain(arguments[1:], ["--"])
    return [
        part
        for argument, then in zip(arguments, following, strict=False)
        for part in (_SHORT.get(argument, [argument]) if then.startswith("-") else [argument])
    ]


def parse_config(arguments: Sequence[str], program: str, description: str, start: Config | None = None) -> Config:
    """Read a configuration from a command line, from `starting_point` on."""
    return parse(Config, arguments, program, description, starting_point(arguments, start))


def starting_point(arguments: Sequence[str], start: Config | None = None) -> Config:
    """What the options of a command line change: the presets of ``--preset``, else `start`, else the preset named
    like ``--data``.
    """
    names = option(arguments, "preset")
    if names is None and start is None:
        data = option(arguments, "data") or "scenes"
        names = data if data in PRESETS else ""
    return start or Config() if names is None else with_presets(Config(), names)


def parse(kind: type[T], arguments: Sequence[str], program: str, description: str, default: T) -> T:
    """Fill a dataclass from a command line; all option names are flat.

    Raises:
        InputError: for an unknown option or a value of the wrong type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Annotated[kind, tyro.conf.OmitArgPrefixes],
                prog=f"python -m {program}",
                description=description,
                args=list(arguments),
                default=default,
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise InputError(f"{_first_paragraph(complaint.getvalue())}; --help shows all options") from end


def _first_paragraph(boxed: str) -> str:
    """The text between the head and the first rule of a framed message."""
    lines = [line.strip("│ ") for line in boxed.splitlines()[1:]]
    return " ".join(itertools.takewhile(lambda line: line.strip("─╰╯"), lines))


def option(arguments: Sequence[str], name: str) -> str | None:
    """The value of ``--name VALUE`` or ``--name=VALUE``, looked up before the command line is parsed."""
    for position, argument in enumerate(arguments):
        if argument == f"--{name}" and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
    return None


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Call a command line's main function and leave with 0, or with one line on stderr and another exit code.

    2: input that cannot be used; 3: a run that cannot go on (a full disk, a dead process); 128 + N: signal N.
    """
    try:
        with interrupt.raised():
            main(sys.argv[1:])
    except InputError as error:
        _leave(f"error: {' '.join(str(error).split())}", 2)
    except RunError as error:
        _leave(f"error: {' '.join(str(error).split())}", 3)
    except interrupt.Interrupted as stop:
        _leave(f"stopped by {stop}; --resume goes on from the last checkpoint", 128 + stop.number)
    except RuntimeError as error:
        if not distributed.lost_contact(error):
            raise
        _leave("error: another process of the run ended", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _leave(line: str, code: int) -> None:
    if distributed.fail_first():
        print(line, file=sys.stderr, flush=True)
    sys.exit(code)
