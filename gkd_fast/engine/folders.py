"""Where a run's files lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gkd_fast.cli import option
from gkd_fast.config import Config, from_dict
from gkd_fast.errors import InputError

RUNS = Path("runs")


def run_folder(config: Config) -> Path:
    """The folder of a run: the given one, or the next free ``runs/DATA-N``; to resume, the existing one.

    Raises:
        InputError: if the given folder already holds a run and ``--resume`` is not set.
    """
    if config.run.resume:
        return config.run.output or _newest()
    if config.run.output is None:
        number = 1
        while (RUNS / f"{config.data.data}-{number}").exists():
            number += 1
        return RUNS / f"{config.data.data}-{number}"
    if (config.run.output / "config.json").exists():
        raise InputError(f"--output: {config.run.output} holds a run; expected a new folder, or --resume to go on")
    return config.run.output


def stored_config(arguments: Sequence[str]) -> Config | None:
    """The configuration of the run that ``--resume`` goes on with, else None.

    Raises:
        InputError: if there is no such run.
    """
    if "--resume" not in arguments:
        return None
    output = option(arguments, "output")
    return read_config((Path(output) if output else _newest()) / "config.json")


def read_config(path: Path) -> Config:
    """Read a ``config.json``.

    Raises:
        InputError: if the file is missing or holds no configuration.
    """
    try:
        return from_dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected the configuration of a run, found none") from error
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected the configuration of a run; {error}") from error


def _newest() -> Path:
    runs = sorted(RUNS.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(f"--resume: expected a run in {RUNS}/ or --output, found none")
    return runs[-1].parent
