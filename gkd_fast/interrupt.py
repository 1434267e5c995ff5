"""SIGTERM and SIGINT: obeyed at once while nothing is at stake, at the end of a step while training."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Pending:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.number = 0
        self._process = os.getpid()

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Keep the first signal; the second one ends the process."""
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number
        from gkd_fast import parallel  # which imports torch, as training has by now

        # Loader processes inherit the handler: a signal to the whole group leaves them to the last step.
        if os.getpid() == self._process and parallel.is_main():
            print(f"{signal.Signals(number).name}: saving after this step; again to end at once", file=sys.stderr)


@contextmanager
def deferred() -> Iterator[Pending]:
    """Within, a signal is kept in the yielded object for the training loop to look at."""
    pending = Pending()
    with _handled(pending.receive):
        yield pending


@contextmanager
def raised() -> Iterator[None]:
    """Within, a signal raises `Interrupted`."""
    process = os.getpid()

    def receive(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Interrupted(number)
        signal.signal(number, signal.SIG_DFL)  # a loader process: the first signal may be the group's

    with _handled(receive):
        yield


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread alone
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
