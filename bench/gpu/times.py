"""Times of operators on a GPU, one JSON line a case: the part of `bench.gpu_check` that may crash or hang.

A kernel that faults takes its process's GPU context with it, so this runs in a process of its own, and what was
measured before stays.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.measuring import machine
from bench.measuring.machine import make_floors
from bench.measuring.passes import make_cotangents
from bench.operators import measure
from bench.operators.case import Case, Implementation
from bench.operators.cases import CASES, build_case
from bench.operators.report import as_json, make_rows
from bench.operators.shapes import DTYPES, SHAPES, Shape

ROUNDS_S = 1.0  # of all timed rounds of a case
REPLAYS = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Time the cases in the order given, until the seconds are used up; a line for each on standard output."""
    options = _parse(argv)
    end = time.monotonic() + options.seconds
    measure.ROUNDS_S = ROUNDS_S
    if options.quick:
        measure.ROUNDS_S = measure.TURN_S = 0.0
        machine.COPY_BYTES, machine.PRODUCT_SIZE = 1 << 20, {"cpu": 64, "cuda": 64}
    gc.freeze()  # what was imported: memory is collected before each peak, and would look at all of it
    device = torch.device(options.device)
    for op in options.op:
        if time.monotonic() > end:
            break
        shape = SHAPES["small" if options.quick else options.shape]
        record = time_case(op, shape, DTYPES[options.dtype], device, compiled=options.compiled)
        print(json.dumps(record), flush=True)
        torch.compiler.reset()
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.times", description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=CASES, required=True)
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="coco")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, required=True, help="no case is begun later")
    parser.add_argument("--quick", action="store_true", help="shape small, each case twice, small floors")
    parser.add_argument("--compiled", action="store_true", help="also the reference under torch.compile")
    return parser.parse_args(argv)


def time_case(op: str, shape: Shape, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> dict[str, Any]:
    """Rows of one case as `bench.run` makes them, the rates beside it, and the kernels' time in a CUDA graph."""
    case = build_case(op, shape, dtype, device)
    kept = [i for i in case.implementations if not i.once and (compiled or i.name != "compiled")]
    case = replace(case, implementations=kept)
    floors = make_floors(case.work.product_dtype or dtype, device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measurements, seconds = measure.measure(case, {n: f.call for n, f in floors.items()}, lambda step: None)
    rates = {name: floor.amount / seconds[name] for name, floor in floors.items()}
    rows = as_json(make_rows(case, shape.name, dtype, measurements, rates))
    remarks = sorted({str(w.message) for w in caught if "gkd_fast" in str(w.message)})
    return {"rows": rows, "rates": rates, "remarks": remarks} | _in_graph(case, rates)


def _in_graph(case: Case, rates: dict[str, float]) -> dict[str, Any]:
    """Milliseconds of the fused forward and backward pass replayed as a graph, and the rate it then achieves."""
    (fused,) = (i for i in case.implementations if i.name == "fused")
    if case.device.type != "cuda":
        return {"graph_ms": None, "graph_fraction": None, "graph_reason": "no GPU"}
    try:
        seconds = graph_seconds(fused, case.leaves)
    except Exception as error:  # whatever stops the capture belongs into the report
        return {"graph_ms": None, "graph_fraction": None, "graph_reason": f"{type(error).__name__}: {error}"[:200]}
    floor = rates["copy" if case.work.unit == "B" else "product"]
    return {"graph_ms": seconds * 1e3, "graph_fraction": case.work.amount / seconds / floor, "graph_reason": ""}


def graph_seconds(implementation: Implementation, leaves: Sequence[Tensor]) -> float:
    """Median of replays of a captured forward and backward pass: the GPU's time without the host's."""

    def run() -> list[Any]:
        outputs = implementation.call()
        if not leaves:
            return [outputs]
        chosen = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
        return [torch.autograd.grad([o for o, _ in chosen], leaves, [c for _, c in chosen], allow_unused=True)]

    cotangents = make_cotangents(implementation.call()) if leaves else []
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as CUDA graphs ask for: warmed up, on another stream
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    times = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    del kept  # the graph writes into it
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
