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

from gkd_fast.config import PRESETS, Config, with_presets
from gkd_fast.errors import InputError

T = TypeVar("T")


def parse_config(arguments: Sequence[str], program: str, description: str, start: Config | None = None) -> Config:
    """Read a configuration from a command line.

    The starting point is `start`, else the presets of ``--preset``, else the preset named like ``--data``.
    """
    names = option(arguments, "preset")
    if names is None and start is None:
        data = option(arguments, "data") or "scenes"
        names = data if data in PRESETS else ""
    if names is not None:
        start = with_presets(Config(), names)
    return parse(Config, arguments, program, description, start or Config())


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
    """Call a command line's main function; bad input ends in one line on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
