"""TensorBoard's event files, one folder a phase."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from gkd_fast.tracking import figures, results


class TensorBoardTracker:
    """Writes to ``tensorboard/`` in a run's folder, or to another one."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None, place: str = "tensorboard") -> None:
        self._folder = folder / place
        self._writers: dict[str, Any] = {}

    def record(self, line: Mapping[str, Any]) -> None:
        """See `gkd_fast.tracking.Tracker`."""
        found = figures(line)
        if not found:
            return
        phase, step = line["phase"], line["step"]
        if phase not in self._writers:
            # A run that goes on writes steps again, which then count instead of the former.
            self._writers[phase] = SummaryWriter(str(self._folder / phase), purge_step=step)
        for name, value in found.items():
            self._writers[phase].add_scalar(name, value, step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """See `gkd_fast.tracking.Tracker`."""
        for name, value in results(summary).items():
            phase, _, key = name.partition("/")
            if phase in self._writers:
                self._writers[phase].add_scalar(key, value, 0)
        for writer in self._writers.values():
            writer.close()
