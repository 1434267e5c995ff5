"""What a finished run left in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_fast.config import Config
from gkd_fast.errors import InputError
from gkd_fast.runs.folders import read_config

PHASES = {"teacher": "teacher", "student": "student alone", "distilled": "student distilled"}


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: as shown; of no other run of the report.
        folder: of its files.
        config: its settings.
        summary: content of summary.json.
        metrics: the lines of metrics.jsonl.
    """

    name: str
    folder: Path
    config: Config
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]

    def curve(self, phase: str, term: str) -> list[tuple[float, float]]:
        """(step, value) of a term in the lines of a phase that have it."""
        lines = [line for line in self.metrics if line["phase"] == phase and "event" not in line]
        return [(line["step"], line[term]) for line in lines if term in line]


def read_runs(folders: list[Path]) -> list[Run]:
    """Read the folders of finished runs.

    Raises:
        InputError: for no folder, or one that holds no finished run.
    """
    if not folders:
        raise InputError("RUNS: expected the folder of at least one run, got none")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [_read(name, folder) for name, folder in zip(names, folders, strict=True)]


def _read(name: str, folder: Path) -> Run:
    config = read_config(folder / "config.json")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return Run(name, folder, config, summary, [json.loads(line) for line in lines])
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: expected the folder of a finished run, found no such file") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{folder}: expected the files of a finished run; {error}") from error
