"""Metrics of runs as TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

from gkd_fast.errors import InputError
from gkd_fast.report.runs import Run


def write_events(runs: list[Run], folder: Path) -> None:
    """Write every number of every metrics line, one folder a run and phase.

    Raises:
        InputError: if TensorBoard is not installed.
    """
    try:
        from gkd_fast.tracking.tensorboard import TensorBoardTracker
    except ImportError as error:
        raise InputError("--tensorboard: needs the package tensorboard; pip install 'gkd_fast[report]'") from error
    for run in runs:
        tracker = TensorBoardTracker(folder, place=run.name.strip("/"))
        for line in run.metrics:
            tracker.record(line)
        tracker.close(run.summary)
