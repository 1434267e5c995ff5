"""Where the settings of a run start, which its other options then change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd_fast.config import Config
from gkd_fast.data.settings import check_root
from gkd_fast.detectors.settings import check_checkpoint
from gkd_fast.presets import starting_point
from gkd_fast.runs.folders import stored_config

FIRST = ("resume", "output", "preset", "data", "data_root", "train_annotations")
"""The options that decide where the settings start."""


def run_start(first: Mapping[str, Any]) -> Config:
    """The settings that the options of a run change; `first`: those of FIRST, None for one that is not given."""
    return starting_point(first, stored_config(*resumed(first)))


def resumed(first: Mapping[str, Any]) -> tuple[str, Path | None]:
    """Whether to go on with what is stored, as ``--resume`` says it, and its folder."""
    value, output = first["resume"], first["output"]
    choice = value or "off" if isinstance(value, str) else "on" if value else "off"
    return choice, Path(output) if output else None


def check_files(config: Config) -> None:
    """Check that the folder and the checkpoints that settings name are there, before torch is imported.

    Raises:
        InputError: naming the first that is not.
    """
    for path in (config.model.teacher.checkpoint, config.model.student.checkpoint):
        if path is not None:
            check_checkpoint(path)
    if config.data.data_root is not None and not config.run.dry_run:
        check_root(config.data.data_root)
