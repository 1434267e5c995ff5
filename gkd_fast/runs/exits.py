"""How a process ends: with 0, or with one line on stderr and an exit code that says what kind of end it was."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

from gkd_fast import interrupt
from gkd_fast.errors import InputError, RunError


def run_command(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Call a command's main function and leave with 0, or with one line on stderr and another exit code.

    2: input that cannot be used; 3: a run that cannot go on (a full disk, a dead process); 128 + N: signal N.

    Args:
        main: takes the command line.
        arguments: the command line; None: this process's.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console that has no letter for a class's name
    try:
        with interrupt.raised():
            main(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        _leave(f"error: {' '.join(str(error).split())}", 2)
    except RunError as error:
        _leave(f"error: {' '.join(str(error).split())}", 3)
    except interrupt.Interrupted as stop:
        _leave(f"stopped by {stop}; --resume goes on from the last checkpoint", 128 + stop.number)
    except RuntimeError as error:
        from gkd_fast.training import distributed

        if not distributed.lost_contact(error):
            raise
        _leave("error: another process of the run ended", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _leave(line: str, code: int) -> None:
    if _fail_first():
        print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def _fail_first() -> bool:
    if "torch" not in sys.modules:  # a command line is refused before torch is imported, by every process of a run
        return os.environ.get("RANK", "0") == "0"
    from gkd_fast.training import distributed

    return distributed.fail_first()
