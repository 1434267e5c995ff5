"""One cell of a study: a student of one method and seed, in this process or in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_fast import parallel
from gkd_fast.config import Config, to_dict
from gkd_fast.errors import InputError, RunError
from gkd_fast.files import loading, write_json
from gkd_fast.runs.exits import run_command
from gkd_fast.runs.folders import read_config
from gkd_fast.runs.job import Job
from gkd_fast.study.methods import CONTROL
from gkd_fast.tracking import tracked

_LOG = "log.txt"


@dataclass(frozen=True)
class Cell:
    """A student to train and evaluate.

    Attributes:
        method: name of the method, or "control" for the student alone.
        seed: of the student.
        config: all its settings.
        folder: where its files lie.
    """

    method: str
    seed: int
    config: Config
    folder: Path

    @property
    def phase(self) -> str:
        """The phase of the main job that this is, and the folder of its files."""
        return "student" if self.method == CONTROL else "distilled"

    @property
    def result(self) -> Path:
        """The file of its figures, which is there once the cell is finished."""
        return self.folder / self.phase / "result.json"


Ended = Callable[[Cell, str | None], None]


@loading()
def run_cell(config: Config, folder: Path, phase: str) -> None:
    """Train and evaluate a student, from its last checkpoint on.

    Args:
        config: with a finished teacher.
        folder: of the cell.
        phase: "student" trains it alone, "distilled" with the teacher.
    """
    with tracked(config.run.track, folder, to_dict(config)) as trackers:
        job = Job(config, trackers=trackers)
        teacher = job.frozen(job.teacher(folder)[0]) if phase == "distilled" else None
        trackers.summary = {phase: job.student(folder, teacher)[1]}


def run_here(cells: Sequence[Cell], ended: Ended) -> None:
    """Run cells one after another; one that fails does not stop the others.

    Args:
        cells: to run.
        ended: called with every cell at its end, and with the reason where it failed.
    """
    for cell in cells:
        _prepare(cell)
        reason = None
        try:
            run_cell(cell.config, cell.folder, cell.phase)
        except (InputError, RunError) as error:
            reason = str(error)
        except Exception as error:  # whatever ended this cell says nothing about the next
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
        ended(cell, reason and " ".join(reason.split()))


def run_in_processes(cells: Sequence[Cell], jobs: int, ended: Ended) -> None:
    """Run cells in `jobs` processes at once, which share the processor's cores; each writes a log in its folder.

    Args:
        cells: to run.
        jobs: most processes at once.
        ended: called with every cell at its end, and with the reason where it failed.
    """
    threads = max(1, parallel.processor_cores() // jobs)
    waiting, running = list(cells), dict[Cell, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = _start(cell, threads)
            time.sleep(0.2)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                code = running.pop(cell).returncode
                ended(cell, _reason(cell, code) if code else None)
    finally:
        for process in running.values():
            process.terminate()  # saves after its step
        for process in running.values():
            process.wait()


def _prepare(cell: Cell) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_json(cell.folder / "config.json", to_dict(cell.config))


def _start(cell: Cell, threads: int) -> subprocess.Popen[bytes]:
    _prepare(cell)
    command = [sys.executable, "-m", "gkd_fast.study.cell", str(cell.folder), cell.phase]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (cell.folder / _LOG).open("wb") as log:
        # A session of its own: of Ctrl-C it hears once, from this process.
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _reason(cell: Cell, code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    lines = (cell.folder / _LOG).read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")


def _main(arguments: Sequence[str]) -> None:
    folder, phase = arguments
    run_cell(read_config(Path(folder) / "config.json"), Path(folder), phase)


if __name__ == "__main__":
    run_command(_main)
