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
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard: needs the package tensorboard; pip install 'gkd_fast[report]'") from error
    for run in runs:
        for phase in dict.fromkeys(line["phase"] for line in run.metrics):
            with SummaryWriter(str(folder / run.name.strip("/") / phase)) as writer:
                for line in run.metrics:
                    if line["phase"] == phase and "step" in line:
                        prefix = f"{line['event']}/" if "event" in line else ""
                        for name, value in line.items():
                            if isinstance(value, (int, float)) and name != "step":
                                writer.add_scalar(prefix + name, value, line["step"])
