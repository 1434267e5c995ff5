"""Loss terms of every step: kept on the device, written to metrics.jsonl, shown in a progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gkd_fast.engine.files import replacing, sync, writing

_QUIET_SECONDS = 30.0  # a log file wants a line now and then, a terminal a living bar


class MetricsWriter:
    """Appends JSON lines to a file.

    Args:
        path: of the file.
        write: off in all but one of the processes that train together.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self.path = path
        self._write = write

    def write(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            RunError: if the disk does not take it.
        """
        if self._write:
            with writing(self.path), self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

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
        self._start = time.perf_counter()

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        """Take the terms of one step."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._steps += 1
        self._images += images

    def flush(self) -> dict[str, float]:
        """Mean terms, their sum as ``loss``, and images a second since the last flush."""
        values = torch.stack(list(self._sums.values())).tolist()
        means = {name: value / self._steps for name, value in zip(self._sums, values, strict=True)}
        now = time.perf_counter()
        rate = self._images / (now - self._start)
        self._sums, self._steps, self._images, self._start = {}, 0, 0, now
        return {"loss": sum(means.values()), **means, "images_per_second": rate}

    def pause(self) -> None:
        """Leave the time since the last flush out of the rate."""
        self._start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What was taken since the last flush."""
        seconds = time.perf_counter() - self._start
        sums = {name: value.cpu() for name, value in self._sums.items()}
        return {"sums": sums, "steps": self._steps, "images": self._images, "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`; the sums go to the device of the terms."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._steps, self._images = state["steps"], state["images"]
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
        terms = " ".join(f"{_short(name)} {value:.3f}" for name, value in means.items() if name != "images_per_second")
        self._bar.set_postfix_str(f"{means['images_per_second']:.1f} img/s | {terms}", refresh=False)

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
