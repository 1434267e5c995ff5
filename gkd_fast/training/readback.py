"""Figures that the device hands over without anybody waiting for it."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from gkd_fast.errors import RunError


class Readback:
    """Copies small tensors to the host, in order; what was copied can be read some steps later."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, Any]] = deque()

    def put(self, values: Tensor, note: Any) -> None:
        """Start to copy [n] values; `note` comes back with them."""
        values = values.detach()
        if values.device.type != "cuda":
            self._pending.append((values.clone(), None, note))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((host, event, note))

    def take(self, *, wait: bool = False) -> list[tuple[list[float], Any]]:
        """What has arrived, in the order it was put; everything with `wait`."""
        arrived = []
        while self._pending and (wait or self._pending[0][1] is None or self._pending[0][1].query()):
            values, event, note = self._pending.popleft()
            if event is not None:
                event.synchronize()
            arrived.append((values.tolist(), note))
        return arrived


class BadSteps:
    """Counts steps in a row whose loss or gradient is not finite, on the device.

    Args:
        limit: so many end the run.
        device: of the losses.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self._streak = torch.zeros((), device=device)
        self._readback = Readback()

    def add(self, names: list[str], terms: Tensor, bad: Tensor, image_ids: list[int]) -> None:
        """Take one step.

        Args:
            names: of the T loss terms.
            terms: [T] float32.
            bad: bool scalar on the device.
            image_ids: of the step's batch.

        Raises:
            RunError: once `limit` steps in a row were bad; on a GPU some steps later.
        """
        self._streak = torch.where(bad, self._streak + 1, 0)
        self._readback.put(torch.cat([terms.detach(), self._streak[None]]), (names, image_ids))
        self.check()

    def check(self, *, wait: bool = False) -> None:
        """Look at the steps whose figures have arrived; at all of them with `wait`."""
        for (*values, streak), (names, image_ids) in self._readback.take(wait=wait):
            if streak >= self.limit:
                wrong = [name for name, value in zip(names, values, strict=True) if not abs(value) < float("inf")]
                raise RunError(
                    f"training: expected finite losses and gradients, got {' and '.join(wrong) or 'a gradient'} not "
                    f"finite and {self.limit} bad steps in a row (--bad-steps), the last on the images "
                    f"{', '.join(map(str, image_ids))}; they changed no weight and no checkpoint"
                )
