"""Where a run's files lie."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from gkd_fast.config import Config, from_dict
from gkd_fast.errors import InputError

RUNS = Path("runs")
_FILE = "config.json"


def run_folder(config: Config) -> Path:
    """The folder of a run: the given one, or the next free ``runs/DATA-N``; to resume, the existing one.

    Raises:
        InputError: if the given folder already holds a run and ``--resume`` is not set.
    """
    if found := stored_folder(config):
        return found
    if config.run.output is None:
        return free_folder(config.data.data)
    if (config.run.output / _FILE).exists():
        raise InputError(f"--output: {config.run.output} holds a run; expected a new folder, or --resume to go on")
    return config.run.output


def stored_folder(config: Config, file: str = _FILE) -> Path | None:
    """The folder that ``--resume`` goes on in, by the file that it holds; None where something new begins."""
    return holding(file, config.run.output) if config.run.resume != "off" else None


def stored_config(resume: str, output: Path | None) -> Config | None:
    """The configuration of the run that ``--resume`` goes on with; None for a new run.

    Args:
        resume: "on", "off", or "auto", which allows a new run.
        output: folder of the run; None: the newest one in runs/.

    Raises:
        InputError: if there is no such run, and `resume` does not allow a new one.
    """
    if resume == "off":
        return None
    found = holding(_FILE, output)
    if found is None and resume == "auto":
        return None
    folder = found or output
    if folder is None:
        raise InputError(f"--resume: expected a run in {RUNS}/ or --output, found none")
    return read_config(folder / _FILE)


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


def holding(file: str, output: Path | None) -> Path | None:
    """The folder that holds a file of this name: the given one, else the newest in runs/; None where there is none."""
    files = [output / file] if output else list(RUNS.glob(f"*/{file}"))
    present = [path for path in files if path.exists()]
    return max(present, key=lambda path: path.stat().st_mtime).parent if present else None


def free_folder(name: str) -> Path:
    """The first of ``runs/NAME-1``, ``runs/NAME-2``, ... that is not there."""
    return next(path for path in (RUNS / f"{name}-{number}" for number in count(1)) if not path.exists())
