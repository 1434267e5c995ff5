"""A whole training step as one graph for every padded size of its batches, and never a silent fallback."""

from __future__ import annotations

import time
import types
import warnings
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from gkd_fast.ops._dispatch import triton_failure

R = TypeVar("R")

# One graph of a small step took 100 to 130 seconds of a processor; that of a large network takes no less.
_SECONDS_A_GRAPH = 120.0
# What a compiled step is taken to save of the time of one that is not.
_SAVED = 0.25
_WARM, _MEASURED = 5, 15  # steps before the step is timed, and timed


class AutoCompile:
    """Decides whether a run compiles its steps.

    ``auto`` does on a GPU, once the rest of the run wins it back, and where Triton can launch what is compiled.

    Args:
        choice: of the run.
        device: of the networks.
        graphs: size buckets, each of which needs a graph.
        steps: of the run; None: unknown, then ``auto`` does not compile.
    """

    def __init__(
        self, choice: Literal["auto", "on", "off"], device: torch.device, graphs: int, steps: int | None
    ) -> None:
        self.decided: bool | None = {"on": True, "off": False}.get(choice)
        if self.decided is None and (device.type != "cuda" or steps is None):
            self.decided = False
        self.graphs, self.left = graphs, steps or 0
        self._seen, self._started = 0, 0.0

    def __call__(self) -> bool:
        """Whether the step that begins now is to be compiled; to be asked before every step."""
        self.left -= 1
        if self.decided is None:
            self._seen += 1
            if self._seen == _WARM:
                self._started = time.perf_counter()
            elif self._seen == _WARM + _MEASURED:
                # The host runs ahead of the device by a few steps at most.
                a_step = (time.perf_counter() - self._started) / _MEASURED
                self.decided = pays(self.left, a_step, self.graphs) and _can_launch()
        return bool(self.decided)


def pays(steps: int, seconds: float, graphs: int) -> bool:
    """Whether compiling wins its time back in so many steps of so many seconds each."""
    return steps * seconds * _SAVED > graphs * _SECONDS_A_GRAPH


def _can_launch() -> bool:
    reason = triton_failure()
    if reason:
        warnings.warn(f"--compile auto: steps are not compiled, Triton does not run here: {reason}", stacklevel=3)
    return not reason


class CompiledStep(Generic[R]):
    """Compiles a function with fullgraph=True, anew for every shape of its first argument.

    On a GPU the graphs are captured, so that a step is launched as a whole.

    Args:
        function: of tensors; all sizes but those that follow from the first argument's are always the same.
        budget: most graphs.

    Attributes:
        seconds: that each graph took, its first step included, by the shape; see `backward_done`.
    """

    def __init__(self, function: Callable[..., R], budget: int) -> None:
        self.function, self.budget = function, budget
        self.seconds: dict[tuple[int, ...], float] = {}
        self._compiled: dict[tuple[int, ...], Callable[..., R]] = {}
        self._new: tuple[tuple[int, ...], float] | None = None  # shape and start of a call that made a graph

    def __call__(self, first: Tensor, *arguments: Any) -> R:
        """The function's value.

        Raises:
            RuntimeError: for more shapes than planned, a function that is no single graph, or one that needs another
                graph for a shape that has one.
        """
        shape = tuple(first.shape)
        if first.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        if shape in self._compiled:
            try:
                with torch.compiler.set_stance("fail_on_recompile"):
                    return self._compiled[shape](first, *arguments)
            except RuntimeError as error:
                if "recompile" not in str(error):
                    raise
                raise RuntimeError(f"--compile: expected one graph for batches of {list(shape)}; {error}") from error
        if len(self._compiled) == self.budget:
            raise RuntimeError(
                f"--compile: expected at most {self.budget} graphs (--size-buckets), one a padded size of the batches; "
                f"one more is needed for batches of {list(shape)}"
            )
        return self._first(shape, first, *arguments)

    def _first(self, shape: tuple[int, ...], *arguments: Any) -> R:
        mode = "reduce-overhead" if arguments[0].device.type == "cuda" else None
        started = time.perf_counter()
        compiled = torch.compile(_with_code_of_its_own(self.function), fullgraph=True, dynamic=False, mode=mode)
        try:
            value = compiled(*arguments)
        except Exception as error:  # a compiler's, of a dozen types
            raise RuntimeError(f"--compile: the step did not compile: {_cause(error)}") from error
        self._compiled[shape] = compiled
        self.seconds[shape] = time.perf_counter() - started
        self._new = shape, started
        return value

    def backward_done(self) -> None:
        """To be called after the backward pass of a value, which compiles its half of the graph, to count that."""
        if self._new:
            shape, started = self._new
            self.seconds[shape], self._new = time.perf_counter() - started, None


def _with_code_of_its_own(function: Callable[..., R]) -> Callable[..., R]:
    """A function that calls `function`; graphs are kept and counted by code object."""

    def step(*arguments: Any) -> R:
        return function(*arguments)

    return types.FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)


def _cause(error: BaseException) -> str:
    """The first line of what lies at the root of a compiler's error."""
    while error.__cause__ is not None or getattr(error, "inner_exception", None) is not None:
        error = getattr(error, "inner_exception", None) or error.__cause__  # type: ignore[assignment]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
