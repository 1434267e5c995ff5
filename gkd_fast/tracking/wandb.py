"""Weights & Biases; WANDB_PROJECT and WANDB_MODE=offline are its own settings."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from gkd_fast.tracking import figures, results
from gkd_fast.tracking.numbers import flat, number_of_run


class WandbTracker:
    """A run of the project; every phase has a step of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gkd_fast"),
            name=folder.name,
            dir=str(folder),
            id=number_of_run("wandb", folder, lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            config=flat(settings),
        )
        for phase in ("teacher", "student", "distilled"):
            self._run.define_metric(f"{phase}/step", hidden=True)
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def record(self, line: Mapping[str, Any]) -> None:
        """See `gkd_fast.tracking.Tracker`."""
        if found := figures(line):
            self._run.log({f"{line['phase']}/{name}": value for name, value in {**found, "step": line["step"]}.items()})

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """See `gkd_fast.tracking.Tracker`."""
        self._run.summary.update(results(summary))
        self._run.finish(exit_code=0 if summary else 1)
