"""The states from which a training goes on: whole or not there, checked when read, for any number of processes."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict_loader as dcp_loader
import torch.distributed.checkpoint.state_dict_saver as dcp_saver
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from gkd_fast import parallel
from gkd_fast.errors import InputError, RunError
from gkd_fast.files import sync, writing
from gkd_fast.training.plain_states import PlainValues, check_index

_CHUNK = 1 << 24


class States:
    """The last states of a training, one folder each: ``step-00000200``.

    Weights and optimiser lie in the format of torch.distributed.checkpoint, each process's part in a file of its
    own; ``progress.pt`` holds the rest, ``checksums.json`` the size and CRC-32 of every file.

    Args:
        folder: of the states.
        keep: so many of the last ones stay.
        modules: everything that is trained.
        optimizer: of their parameters.
    """

    def __init__(self, folder: Path, keep: int, modules: nn.Module, optimizer: Optimizer) -> None:
        self.folder = folder
        self.keep = keep
        self.modules = modules
        self.optimizer = optimizer

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Write a state under a temporary name, then rename it: it is there as a whole or not at all.

        Args:
            step: its number.
            progress: what is neither weights nor optimiser, the main process's.

        Raises:
            RunError: if it cannot be written; the states before are then as they were.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = final.with_suffix(".tmp")
        randoms = parallel.gather(random_state())
        try:
            with writing(final):
                if parallel.is_main():
                    self._clear()
                    temporary.mkdir(parents=True)
                parallel.barrier()
                with _quiet():
                    dcp_saver.save(self._tensors(), checkpoint_id=temporary, no_dist=not dist.is_initialized())
                if parallel.is_main():
                    _write(temporary / "progress.pt", {**progress, "step": step, "random": randoms})
                    (temporary / "checksums.json").write_text(json.dumps(_checksums(temporary)))
                    sync(temporary / "checksums.json")
                    sync(temporary)
                    os.rename(temporary, final)
                    sync(self.folder)
                    self._clear()
        except RunError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        parallel.barrier()

    def load(self) -> dict[str, Any] | None:
        """Restore the newest whole state.

        Returns:
            The progress given to `save`, with its ``step``; None where no state was ever saved.

        Raises:
            InputError: if every state is damaged, or fits another network.
        """
        path = parallel.from_main(self._newest() if parallel.is_main() else None)
        if path is None:
            return None
        tensors = self._tensors()
        try:
            with _quiet():
                check_index(path)
                single = not dist.is_initialized()
                dcp_loader.load(tensors, checkpoint_id=path, planner=PlainValues(), no_dist=single)
            set_model_state_dict(self.modules, tensors["modules"])
            fused = [group["fused"] for group in self.optimizer.param_groups]
            set_optimizer_state_dict(self.modules, self.optimizer, tensors["optimizer"])
            # A matter of how the weights lie here, not of the state.
            for group, own in zip(self.optimizer.param_groups, fused, strict=True):
                group["fused"] = own
        except (CheckpointException, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [""])[-1]
            raise InputError(f"{path}: expected a state of this network and optimiser: {reason}") from error
        progress = torch.load(path / "progress.pt", map_location="cpu", weights_only=True)
        restore_random_state(progress["random"])
        return progress

    def _tensors(self) -> dict[str, Any]:
        return {
            "modules": get_model_state_dict(self.modules),
            "optimizer": get_optimizer_state_dict(self.modules, self.optimizer),
        }

    def _newest(self) -> Path | None:
        found = self._all()
        for path in reversed(found):
            damage = _damage(path)
            if damage is None:
                for later in found[found.index(path) + 1 :]:
                    shutil.rmtree(later)
                return path
            print(f"warning: {path}: damaged ({damage}); taking the state before it", file=sys.stderr, flush=True)
        if found:
            raise InputError(f"{self.folder}: expected a state that is whole, all are damaged; remove it to start anew")
        return None

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".tmp")

    def _clear(self) -> None:
        """Remove what a killed process left, and all but the last states."""
        for path in self._all()[: -self.keep]:
            path.rename(path.with_suffix(".tmp"))  # a state is never half there
        for path in self.folder.glob("*.tmp"):
            shutil.rmtree(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process saves alone, which it does although told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def random_state() -> dict[str, Any]:
    """The states of this process's random generators, as types that torch reads without pickling code."""
    state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
    }


def restore_random_state(states: list[dict[str, Any]]) -> None:
    """Restore this process's generators; where more processes train than before, the new ones begin elsewhere."""
    number = parallel.rank()
    state = states[number % len(states)]
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    if number >= len(states):
        torch.manual_seed(torch.initial_seed() + number)


def _write(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _checksums(folder: Path) -> dict[str, list[int]]:
    return {path.name: [path.stat().st_size, _crc(path)] for path in _contents(folder)}


def _damage(folder: Path) -> str | None:
    """What is wrong with a state, or None."""
    try:
        expected = json.loads((folder / "checksums.json").read_text())
        for name, (size, checksum) in expected.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} of {size} bytes"
            if _crc(path) != checksum:
                return f"{name} has changed"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _contents(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.name != "checksums.json")


def _crc(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
