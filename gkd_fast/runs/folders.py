"""Where a run's files lie."""

from __future__ import annotations

import json
from pathlib import Path

from gkd_fast.config import Config, from_dict
from gkd_fast.errors import InputError

RUNS = Path("runs")


def run_folder(config: Config) -> Path:
    """The folder of a run: the given one, or the next free ``runs/DATA-N``; to resume, the existing one.

    Raises:
        InputError: if the given folder already holds a run and ``--resume`` is not set.
    """
    if config.run.resume != "off" and (found := _found(config.run.output)):
        return found
    if config.run.output is None:
        number = 1
        while (RUNS / f"{config.data.data}-{number}").exists():
            number += 1
        return RUNS / f"{config.data.data}-{number}"
    if (config.run.output / "config.json").exists():
        raise InputError(f"--output: {config.run.output} holds a run; expected a new folder, or --resume to go on")
    return config.run.output


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
    folder = _found(output) or output
    if resume == "auto" and _found(output) is None:
        return None
    if folder is None:
        raise InputError(f"--resume: expected a run in {RUNS}/ or --output, found none")
    return read_config(folder / "config.json")


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


def _found(output: Path | None) -> Path | None:
    """The run in a folder, or the newest one in runs/."""
    configurations = [output / "config.json"] if output else list(RUNS.glob("*/config.json"))
    present = [path for path in configurations if path.exists()]
    return max(present, key=lambda path: path.stat().st_mtime).parent if present else None
