"""Systems without POSIX's locks and affinity: the package imports, claims a folder once, and writes its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Libraries that look at the system come first.
PROGRAM = """
import importlib, os, pkgutil, sys, types
from pathlib import Path
import PIL.Image, filelock, numpy, pycocotools.coco, torch, torchvision, tqdm, tyro

sys.modules["fcntl"] = None
del os.sched_getaffinity, os.sysconf
locked = set()
def locking(descriptor, mode, count):
    key = os.fstat(descriptor).st_ino
    if key in locked:
        raise PermissionError(13, "Permission denied")
    locked.add(key)
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)

import gkd_fast
libraries = ("gkd_fast.integrations.", "gkd_fast.kernels", "gkd_fast.report.tensorboard", "gkd_fast.tracking.")
for module in pkgutil.walk_packages(gkd_fast.__path__, "gkd_fast."):
    if not module.name.startswith(libraries) and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from gkd_fast import files, parallel
from gkd_fast.errors import RunError
print(parallel.processor_cores() == os.cpu_count())
with files.claimed(Path("run")):
    try:
        with files.claimed(Path("run")):
            print("twice")
    except RunError as error:
        print(error)

opened, plain = [], os.open
def opening(path, flags, *more):
    if Path(path).is_dir():
        raise PermissionError(13, "Permission denied", str(path))
    opened.append(flags & os.O_RDWR)
    return plain(path, flags, *more)
files.os = types.SimpleNamespace(**{**vars(os), "name": "nt", "open": opening})
files.write_json(Path("a.json"), {"b": 1})
print(Path("a.json").read_text().split(), opened == [os.O_RDWR])
"""


def test_a_system_that_is_not_posix(tmp_path: Path) -> None:
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    printed = subprocess.check_output(command, text=True, cwd=tmp_path, env=environment).splitlines()
    assert printed == [
        "True",
        "run: another process trains there; wait for its end or stop it",
        "['{', '\"b\":', '1', '}'] True",
    ]
