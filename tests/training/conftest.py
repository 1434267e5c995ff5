"""Small runs that can be ended or disturbed at a planned moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import tiny_run

# Nothing divides anything: sums of unfinished log lines and unfinished epochs are in the checkpoints.
TINY_RUN = tiny_run("--log-steps 3 --checkpoint-steps 2 --keep-checkpoints 2 --prototypes-from pass", train=16, val=2)

Train = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Runs a training by `hooked_runs.PLANS`; returns its exit code and what it printed."""
    script = Path(__file__).with_name("hooked_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("log") / "log"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], env=environment, **pipes) as server:

        def run(*arguments: object, plan: tuple[object, ...] = ("nothing",)) -> tuple[int, str]:
            job = {"arguments": [str(item) for item in arguments], "plan": plan, "log": str(log)}
            print(json.dumps(job), file=server.stdin, flush=True)
            return int(server.stdout.readline()), log.read_text()

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a run of seconds."""
    return TINY_RUN


@pytest.fixture(scope="session")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, text = train(*TINY_RUN, "--output", folder)
    assert code == 0, text
    return folder


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """The same run, before the student is distilled."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("distilled", "summary.json"))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if "distilled" not in line))
    return folder
