"""MLflow: where and under what experiment is said by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from gkd_fast.tracking import figures, results
from gkd_fast.tracking.numbers import flat, number_of_run

_MOST = 100  # parameters, or metrics, in one call


class MLflowTracker:
    """A run of the experiment; one that goes on is the same run there."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._client = MlflowClient()
        self._run = number_of_run("mlflow", folder, lambda: self._created(folder, settings))

    def _created(self, folder: Path, settings: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gkd_fast")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run: str = self._client.create_run(experiment, run_name=folder.name).info.run_id
        parameters = [Param(key, str(value)) for key, value in flat(settings).items()]
        for start in range(0, len(parameters), _MOST):
            self._client.log_batch(run, params=parameters[start : start + _MOST])
        return run

    def record(self, line: Mapping[str, Any]) -> None:
        """See `gkd_fast.tracking.Tracker`."""
        self._log({f"{line['phase']}/{name}": value for name, value in figures(line).items()}, line.get("step", 0))

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """See `gkd_fast.tracking.Tracker`."""
        self._log(results(summary), 0)
        self._client.set_terminated(self._run, "FINISHED" if summary else "KILLED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        for start in range(0, len(metrics), _MOST):
            self._client.log_batch(self._run, metrics=metrics[start : start + _MOST])
