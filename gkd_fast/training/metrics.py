"""Loss terms of every step: kept on the device, written to metrics.jsonl, shown in a progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from gkd_fast.files import replacing, sync, writing
from gkd_fast.tracking import Trackers
from gkd_fast.training.readback import Readback

T = TypeVar("T")

_QUIET_SECONDS = 30.0  # a log file wants a line now and then, a terminal a living bar


class MetricsWriter:
    """Appends JSON lines to a file.

    Args:
        path: of the file.
        write: off in all but one of the processes that train together.
        trackers: which get every record, too.
    """

    def __init__(self, path: Path, *, write: bool = True, trackers: Trackers | None = None) -> None:
        self.path = path
        self._trackers = trackers
        self._write = write

    def write(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            RunError: if the disk does not take it.
        """
        if self._write:
            with writing(self.path), self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            if self._trackers is not None:
                self._trackers.record(record)

    def position(self) -> int:
        """Length of the file in bytes, which the disk then holds."""
        if not self._write or not self.path.exists():
            return 0
        sync(self.path)
        return self.path.stat().st_size

    def rewind(self, position: int) -> None:
        """Drop what was written after a `position`."""
        if self._write and self.path.exists():
            os.truncate(self.path, min(position, self.path.stat().st_size))

    def forget(self, phase: str) -> None:
        """Drop the records of a phase that begins anew, and a line cut short."""
        if self._write and self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["phase"] != phase]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(kept))


class StepMeter:
    """Averages the loss terms over some steps without waiting for the device in between."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._images = 0
        self._waited = 0.0
        self._start = time.perf_counter()
        self._readback = Readback()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time for which each keeps the loop waiting is taken."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        """Take the terms of one step."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._steps += 1
        self._images += images

    def flush(self, record: dict[str, Any]) -> None:
        """Close an interval; its means come with `arrived`, beside the record."""
        now = time.perf_counter()
        rates = {
            "images_per_second": self._images / (now - self._start),
            "data_wait": self._waited / (now - self._start),
        }
        means = torch.stack(list(self._sums.values())) / self._steps
        self._readback.put(means, (record, list(self._sums), rates))
        self._sums, self._steps, self._images, self._waited, self._start = {}, 0, 0, 0.0, now

    def arrived(self, *, wait: bool = False) -> list[tuple[dict[str, Any], dict[str, float]]]:
        """The intervals whose figures the device has handed over, all of them with `wait`.

        Returns:
            For each the record given to `flush`, and the mean terms, their sum as ``loss``, images a second and
            ``data_wait``, the fraction of the time in which the loop waited for data.
        """
        found = []
        for values, (record, names, rates) in self._readback.take(wait=wait):
            found.append((record, {"loss": sum(values), **dict(zip(names, values, strict=True)), **rates}))
        return found

    def pause(self) -> None:
        """Leave the time since the last flush out of the rates."""
        self._start, self._waited = time.perf_counter(), 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was taken since the last flush."""
        seconds = time.perf_counter() - self._start
        sums = {name: value.cpu() for name, value in self._sums.items()}
        counts = {"steps": self._steps, "images": self._images, "seconds": seconds, "waited": self._waited}
        return {"sums": sums, **counts}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`; the sums go to the device of the terms."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._steps, self._images, self._waited = state["steps"], state["images"], state["waited"]
        self._start = time.perf_counter() - state["seconds"]


class Progress:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, title: str, total: int, initial: int = 0, *, show: bool = True) -> None:
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            disable=not show,
            total=total,
            initial=initial,
            desc=f"{title:<10}",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if self._live else _QUIET_SECONDS,
            maxinterval=10.0 if self._live else _QUIET_SECONDS,
            file=sys.stderr if self._live else _Lines(),
            bar_format="{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
        )

    def show(self, means: dict[str, float]) -> None:
        """Show loss terms and images a second."""
        terms = {name: value for name, value in means.items() if name not in ("images_per_second", "data_wait")}
        shown = " ".join(f"{_short(name)} {value:.3f}" for name, value in terms.items())
        self._bar.set_postfix_str(f"{means['images_per_second']:.1f} img/s | {shown}", refresh=False)

    def step(self) -> None:
        """One step done."""
        self._bar.update()

    def close(self) -> None:
        """End the bar with its last figures."""
        self._bar.close()


class _Lines:
    """A file for tqdm that ends every update with a line feed instead of rewriting the line."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def _short(name: str) -> str:
    return name.removeprefix("loss_").removeprefix("gkd_")
