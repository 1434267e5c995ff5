"""The first of two stages of parsing: the few options that decide where the settings start.

What a command line leaves out has the value of the run that ``--resume`` goes on with, of a preset, or of the settings
in a checkpoint; so these options are read before the others, and then again with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from gkd_fast.errors import InputError
from gkd_fast.ranges import option_name

# Options that may stand without a value, and what they then mean.
_ALONE = {"resume": "on", "compile": "on"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Complain about a value that is missing."""
        raise InputError(f"{message.removeprefix('argument ')}; --help shows the options")


def first_stage(arguments: Sequence[str], *names: str) -> tuple[argparse.Namespace, list[str]]:
    """Read some options of a command line, whatever else stands there.

    Args:
        arguments: the command line.
        names: of the options to read; ``compile`` stands for ``--no-compile``, too.

    Returns:
        The value of each option as text, None where it is not given, and the command line for the second stage, in
        which every option has a value.

    Raises:
        InputError: for an option without the value that it needs.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name in names:
        flags = dict.fromkeys((option_name(name), f"--{name}"))
        if name in _ALONE:
            parser.add_argument(*flags, dest=name, nargs="?", const=_ALONE[name])
        else:
            parser.add_argument(*flags, dest=name)
    if "compile" in names:
        parser.add_argument("--no-compile", dest="compile", action="store_const", const="off")
    found, rest = parser.parse_known_args(list(arguments))
    given = [f"{option_name(name)}={value}" for name, value in vars(found).items() if value is not None]
    return found, [*rest, *given]
