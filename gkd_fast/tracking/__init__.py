"""A run's figures for other programs to show: TensorBoard, MLflow, Weights & Biases.

A tracker gets every line of ``metrics.jsonl`` as it is written, and the summary at the end.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from gkd_fast.errors import InputError

TRACKERS = {
    "tensorboard": ("tensorboard", "TensorBoardTracker"),
    "mlflow": ("mlflow", "MLflowTracker"),
    "wandb": ("wandb", "WandbTracker"),
}
"""Package and class of each, by its name, which is also that of its module here."""


class Tracker(Protocol):
    """Where figures go."""

    def record(self, line: Mapping[str, Any]) -> None:
        """Take a line of ``metrics.jsonl``."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Take the content of ``summary.json``, None where the run did not come to its end."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are there.

    Raises:
        InputError: for the first that is not.
    """
    for name in names:
        if importlib.util.find_spec(TRACKERS[name][0]) is None:
            raise InputError(f"--track: {name} needs the package {name}; pip install 'gkd_fast[{name}]'")


class Trackers:
    """Several trackers as one; one that fails is left out from then on, with a warning: it stops no run."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)
        self.summary: Mapping[str, Any] | None = None

    def record(self, line: Mapping[str, Any]) -> None:
        """Hand a line to all."""
        self._each("record", line)

    def close(self) -> None:
        """Hand the summary to all."""
        self._each("close", self.summary)

    def _each(self, method: str, argument: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, method)(argument)
            except Exception as error:  # of another library, its network, its disk
                del self._trackers[name]
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"warning: --track {name} ends here: {reason}", file=sys.stderr, flush=True)


@contextmanager
def tracked(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> Iterator[Trackers]:
    """Within, figures go to the trackers of these names.

    Args:
        names: of `TRACKERS`.
        folder: of the run.
        settings: of the run, as in its ``config.json``.

    Raises:
        InputError: for a package that is not there.
    """
    check_trackers(names)
    kinds = {name: getattr(import_module(f"{__name__}.{name}"), TRACKERS[name][1]) for name in names}
    trackers = Trackers({name: kind(folder, settings) for name, kind in kinds.items()})
    try:
        yield trackers
    finally:
        trackers.close()


def figures(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl`` by name, those of an event under its name; none without a step."""
    if "step" not in line:
        return {}
    prefix = f"{line['event']}/" if "event" in line else ""
    left_out = ("step", "epoch")
    return {prefix + name: value for name, value in line.items() if _is_number(value) and name not in left_out}


def results(summary: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers of every network in a ``summary.json``, such as ``distilled/AP``."""
    networks = {name: value for name, value in (summary or {}).items() if name in ("teacher", "student", "distilled")}
    return {f"{name}/{key}": own for name, value in networks.items() for key, own in value.items() if _is_number(own)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
