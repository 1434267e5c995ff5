"""Trains on request, in a child process each time, and ends or disturbs it at a planned moment.

Reads JSON lines {"arguments", "plan", "log"}, answers each with the child's exit code; torch is imported once for all.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gkd_fast.cli import train
from gkd_fast.methods.gkd import prototypes
from gkd_fast.runs.exits import run_command
from gkd_fast.training import states
from gkd_fast.training.trainer import Trainer


def at_call(owner: Any, name: str, number: int, action: Callable[[], None], *, after: bool = False) -> None:
    """Act before (or after) the number-th call of a function, counted from 1."""
    original, calls = getattr(owner, name), 0

    def hooked(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == number and not after:
            action()
        result = original(*arguments, **keywords)
        if calls == number and after:
            action()
        return result

    setattr(owner, name, hooked)


def end(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def kill_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def spoil(folder: str) -> None:
    for path in Path(folder).iterdir():
        path.write_bytes(path.read_bytes()[:100])


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# A pass pools twice a batch, once in each network's maps.
PLANS: dict[str, Callable[..., None]] = {
    "nothing": lambda: None,
    "kill before step": lambda n: at_call(Trainer, "_step", n, end(signal.SIGKILL)),
    "kill in step": lambda n: at_call(torch.Tensor, "backward", n, end(signal.SIGKILL)),
    "kill after step": lambda n: at_call(Trainer, "_step", n, end(signal.SIGKILL), after=True),
    "kill in refresh": lambda n: at_call(prototypes.ops, "matching_pursuit", n, end(signal.SIGKILL)),
    "kill in pass": lambda n: at_call(prototypes, "pool", 2 * n, end(signal.SIGKILL)),
    "kill in tensors": lambda n: at_call(torch, "save", n, end(signal.SIGKILL)),
    "kill before progress": lambda n: at_call(states, "_write", n, end(signal.SIGKILL)),
    "kill before rename": lambda n: at_call(states.os, "rename", n, end(signal.SIGKILL)),
    "kill after rename": lambda n: at_call(states.os, "rename", n, end(signal.SIGKILL), after=True),
    "kill in removal": lambda n: at_call(states.shutil, "rmtree", n, end(signal.SIGKILL)),
    "SIGTERM": lambda n: at_call(torch.Tensor, "backward", n, end(signal.SIGTERM)),
    "SIGINT": lambda n: at_call(torch.Tensor, "backward", n, end(signal.SIGINT)),
    "two signals": lambda n: at_call(torch.Tensor, "backward", n, lambda: [end(signal.SIGTERM)() for _ in range(2)]),
    "SIGTERM in refresh": lambda n: at_call(prototypes, "pool", 2 * n, end(signal.SIGTERM)),
    "small files": lambda n, size: at_call(Trainer, "_step", n, lambda: limit_files(size)),
    "dead worker": lambda n: at_call(Trainer, "_step", n, kill_worker),
    "spoilt images": lambda n, folder: at_call(Trainer, "_step", n, lambda: spoil(folder)),
}


def child(job: dict[str, Any]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    name, *arguments = job["plan"]
    PLANS[name](*arguments)
    sys.argv = ["train", *job["arguments"]]
    run_command(train.main)


def serve() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            child(job)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
