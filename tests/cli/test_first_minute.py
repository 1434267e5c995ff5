"""What a command line says at once, it says without importing torch: help, the version, and what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_fast.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
WRONG = {
    "train --epochs x": "--epochs",
    "train --epochs 0": "--epochs: expected a positive number, got 0",
    "train --metod gkd": "Unrecognized options: --metod, gkd (--method?)",
    "train --method nothing": "--method: expected names of gkd",
    "train --method crosskd": "--method: crosskd needs the heads of two torchvision RetinaNets",
    "train --preset nothing": "--preset: expected one of scenes",
    "train --data-root nowhere": "nowhere: expected a folder, found nothing",
    "train --teacher-checkpoint nowhere.pt": "nowhere.pt: expected a checkpoint file, found none",
    "train --resume --output nowhere": "nowhere/config.json: expected the configuration of a run",
    "study --seeds 0 0": "--seeds: expected different numbers",
    "study --methods nothing": "--methods: expected",
    "study --set cells --set cells --output x": "--set: expected a name of its own",
    "study --data-root nowhere": "nowhere: expected a folder, found nothing",
    "evaluate": "--checkpoint: expected a detector's file, got nothing",
    "evaluate --checkpoint nowhere.pt": "nowhere.pt: expected a checkpoint file, found none",
    "predict": "--checkpoint: expected a detector's file, got nothing",
    "predict --checkpoint nowhere.pt pyproject.toml": "nowhere.pt: expected a checkpoint file, found none",
    "predict --checkpoint nowhere.pt": "IMAGES: expected at least one image or folder, got none",
    "export --output x.pth": "--checkpoint: expected a file, got nothing",
    "export --checkpoint nowhere.pt --output x.pth": "nowhere.pt: expected a checkpoint file, found none",
    "export --format tflite": "--format",
    "convert": "--checkpoint",
    "convert --checkpoint nowhere.pth --output x.pt": "nowhere.pth: expected a checkpoint file, found none",
    "report": "RUNS: expected the folder of at least one run, got none",
    "report nowhere": "nowhere",
    "push-to-hub": "RUN: expected the folder of a finished run, got nothing",
    "push-to-hub nowhere": "nowhere/distilled/model.pt: expected a checkpoint file, found none",
    "push-to-hub nowhere --repo name": "--repo: expected USER/NAME, got name",
    "inspect --examples 0": "--examples: expected a positive number, got 0",
    "inspect --data-root nowhere": "nowhere: expected a folder, found nothing",
}
HELP = [f"{command} {option}" for command in COMMANDS for option in ("--help", "--help-all")]

# Runs each line as `python -m gkd_fast.COMMAND` does, one after another in this process: what one of them imports,
# those behind it have, too. Prints code, output and heavy modules of each.
PROGRAM = """
import contextlib, io, json, runpy, sys
sys.argv, results = ["", *sys.argv[1:]], {}
for line in sys.argv[1:]:
    command, *sys.argv[1:] = line.split()
    code, printed = 0, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_module(f"gkd_fast.{command.replace('-', '_')}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    heavy = [name for name in ("torch", "torchvision", "numpy", "pycocotools") if name in sys.modules]
    results[line] = code, printed.getvalue(), heavy
print(json.dumps(results))
"""


def outcomes(*lines: str) -> dict[str, list]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *lines]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def ends() -> dict[str, list]:
    return outcomes(*HELP, *WRONG)


@pytest.mark.parametrize("line", HELP)
def test_help_is_there_before_torch(line: str, ends: dict[str, list]) -> None:
    code, printed, heavy = ends[line]
    assert (code or 0, heavy) == (0, [])
    assert printed.startswith(f"usage: gkd-fast {line.split()[0]}")


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_refused_before_torch(line: str, ends: dict[str, list]) -> None:
    code, printed, heavy = ends[line]
    assert (code, heavy) == (2, [])
    assert printed.startswith("error: ")
    assert WRONG[line] in printed
    assert len(printed.splitlines()) == 1


def test_the_program_sees_what_is_imported() -> None:
    assert "torch" in outcomes("ops")["ops"][2]
