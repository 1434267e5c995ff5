"""What the host spends on the operators, one JSON line a case: runs on the mock device alone.

Launches and copies are exact; the time is that of the processor, of all threads, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from bench.gpu.mock import counted, is_loaded
from bench.measuring.passes import Call, make_cotangents
from bench.operators.case import Case, Setting
from bench.operators.cases import CASES, default_loss
from bench.operators.shapes import DTYPES, SHAPES


def compiled(build: Callable[[Setting], Case]) -> Callable[[Setting], Case]:
    """The case with its fused pass compiled by Inductor, into one graph."""

    def build_compiled(setting: Setting) -> Case:
        case = build(setting)
        (fused,) = (i for i in case.implementations if i.name == "fused")
        call = torch.compile(fused.call, fullgraph=True, dynamic=False)
        return replace(case, implementations=[replace(fused, call=call)])

    return build_compiled


COMPILED: dict[str, Callable[[Setting], Case]] = {
    "compiled_distill_loss": compiled(CASES["distill_loss"]),
    "compiled_default_loss": compiled(default_loss),
}
HOST_CASES: dict[str, Callable[[Setting], Case]] = {**CASES, "default_loss": default_loss, **COMPILED}
"""Every operator, the loss that the published loop computes, the one with the defaults, and both compiled."""

WARM_UP = 5  # passes, of which the first compile
ROUNDS, PASSES = 15, 20


@dataclass(frozen=True)
class HostCost:
    """Of one forward and backward pass.

    Attributes:
        op, dtype: the case, of shape ``small``.
        launches, copies, transfers, waits: see `bench.gpu.mock.Counts`.
        host_us: microseconds of the processor; the lowest round's mean of 20 passes. None where only counted.
        forward_us: of them the forward pass's.
    """

    op: str
    dtype: str
    launches: int
    copies: int
    transfers: int
    waits: int
    host_us: float | None
    forward_us: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Count, and time unless told not to, the cases in the order given; a line for each on standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.host", description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=HOST_CASES, default=list(HOST_CASES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--count-only", action="store_true")
    options = parser.parse_args(argv)
    if not is_loaded():
        parser.error("expected a process on the mock device (bench.gpu.mock.environment), got one without")
    torch.backends.cudnn.enabled = False
    warnings.simplefilter("error", UserWarning)  # a backend that is missing would be the reference's cost
    for op in options.op:
        for dtype in options.dtype:
            print(json.dumps(asdict(measure(op, dtype, timed=not options.count_only))), flush=True)
    return 0


def measure(op: str, dtype: str, *, timed: bool) -> HostCost:
    """Cost of the fused pass of one case.

    Raises:
        RuntimeError: two passes differ in what they ask of the device.
    """
    case = HOST_CASES[op](Setting(SHAPES["small"], DTYPES[dtype], torch.device("cuda")))
    (fused,) = (i for i in case.implementations if i.name == "fused")
    forward, whole = _passes(fused.call, case.leaves)
    for _ in range(WARM_UP):
        whole()
    seen = []
    for _ in range(2):
        with counted() as counts:
            whole()
        seen.append(counts)
    if seen[0] != seen[1]:
        raise RuntimeError(f"{op}, {dtype}: expected equal passes, got {seen[0]} and {seen[1]}")
    amounts = {name: getattr(seen[0], name) for name in ("launches", "copies", "transfers", "waits")}
    times = [round(_lowest_us(run), 1) if timed else None for run in (whole, forward)]
    return HostCost(op, dtype, **amounts, host_us=times[0], forward_us=times[1])


def _passes(call: Call, leaves: Sequence[Tensor]) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward pass, and both."""
    cotangents = make_cotangents(call()) if leaves else []
    chosen = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

    def whole() -> object:
        outputs = call()
        if not leaves:
            return outputs
        given = [cotangents[i] for i in chosen]
        return torch.autograd.grad([outputs[i] for i in chosen], leaves, given, allow_unused=True)

    return call, whole


def _lowest_us(run: Callable[[], object]) -> float:
    lowest = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(PASSES):
            run()
        lowest = min(lowest, time.process_time() - start)
    return lowest / PASSES * 1e6


if __name__ == "__main__":
    sys.exit(main())
