"""Training steps on a GPU, one JSON line a loop: the part of `bench.gpu_check` that compares whole loops.

Every loop is one of `bench.step`: torchvision's, ours, ours compiled. On the mock device it runs as well; then the
seconds are the host's, and values mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.gpu.mock import counted, is_loaded
from bench.gpu.mock.zeros import ZeroResults
from bench.measuring.passes import peak_extra_bytes
from bench.step.loops import VARIANTS, Loop, Scale, make_data, make_loop
from bench.step.measure import DETECTORS, cycle
from gkd_fast.data.loader import build_loader
from gkd_fast.errors import InputError
from gkd_fast.methods import Method
from gkd_fast.training.distilling import passed_batches
from gkd_fast.training.step import TrainStep

SCALES = {
    "full": Scale(side=800, long_side=1333, batch=2, images=8),
    "tiny": Scale(
        teacher="resnet18", student="resnet18", side=96, batch=1, channels=16, head=32, proposals=20, rois=16, images=4
    ),
}
"""Images of a published run, two a device; and what a mock device gets through in seconds, where a mask always chooses
one and so an instance of each image would be more than one of all."""
STEPS = {"full": 10, "tiny": 2}
WARM_UP = 3  # steps: the first compiles, the second and third record graphs


@dataclass(frozen=True)
class StepCost:
    """Of one training step.

    Attributes:
        detector, variant, scale: which loop, on which networks and images.
        images_per_second: from the median of some steps.
        first_s: seconds of the first steps, which compile.
        launches: calls of the host that launch a kernel or a whole graph.
        waits: of the host for the device.
        peak_mb: of memory at the step's peak beyond what is held between steps, 1e6 bytes.
    """

    detector: str
    variant: str
    scale: str
    images_per_second: float
    first_s: float
    launches: int
    waits: int
    peak_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the loops in the order given, until the seconds are used up; a line for each on standard output."""
    loops = [f"{detector}:{variant}" for detector in DETECTORS for variant in VARIANTS]
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.steps", description=__doc__.splitlines()[0])
    parser.add_argument("--loop", nargs="+", choices=loops, required=True, metavar="DETECTOR:VARIANT")
    parser.add_argument("--quick", action="store_true", help="tiny networks and images, two steps")
    parser.add_argument("--method", help="of ours, with the default settings; default: as the published loop")
    parser.add_argument("--seconds", type=float, required=True, help="no loop is begun later")
    options = parser.parse_args(argv)
    try:
        Method.parse(options.method or "gkd", "--method")
    except InputError as error:
        parser.error(str(error))
    end = time.monotonic() + options.seconds
    if is_loaded():
        torch.backends.cudnn.enabled = False
    gc.freeze()  # what was imported: memory is collected before each peak, and would look at all of it
    for loop in options.loop:
        if time.monotonic() > end:
            break
        detector, variant = loop.split(":")
        cost = measure_step(detector, variant, "tiny" if options.quick else "full", options.method)
        print(json.dumps(asdict(cost)), flush=True)
        torch.compiler.reset()
    return 0


def measure_step(detector: str, variant: str, scale: str, method: str | None = None) -> StepCost:
    """One loop on the current CUDA device; for the method see `make_loop`."""
    sizes = SCALES[scale]
    data = make_data(sizes)
    loop = make_loop(variant, detector, sizes, data.classes, method=method, device="cuda")
    batches = list(build_loader(data, batch_size=sizes.batch, shuffle=False, seed=0, workers=0))
    loop.distiller.refresh(passed_batches(loop.adapter, batches, torch.device("cuda")))
    loop.adapter.model.train()
    endless = cycle(batches)

    def step() -> None:
        loop(next(endless), 1.0)

    with _possible_values(loop):
        while loop.distiller.measures_units:  # such steps are not compiled
            step()
        first_s = _seconds(lambda: [step() for _ in range(WARM_UP)])
        step_s = statistics.median(_seconds(step) for _ in range(STEPS[scale]))
        with asked_of_the_device() as asked:
            step()
        peak, _ = peak_extra_bytes(step, torch.device("cuda"))
    assert peak is not None
    rate = sizes.batch / step_s
    return StepCost(detector, variant, scale, rate, first_s, asked["launches"], asked["waits"], peak / 1e6)


def _possible_values(loop: Loop) -> AbstractContextManager[object]:
    """For the mock, whose kernels leave any numbers: the published loop takes sizes and indices from such results."""
    if not is_loaded():
        return nullcontext()
    if isinstance(loop, TrainStep):
        loop.bad_steps.check = lambda **_: None
        return nullcontext()
    return ZeroResults()


def _seconds(action: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def asked_of_the_device() -> Iterator[dict[str, int]]:
    """Launches and waits within; filled at the end.

    A GPU's launches are those that torch's profiler saw, its waits those that torch itself warns of.
    """
    found: dict[str, int] = {}
    if is_loaded():
        with counted() as counts:
            yield found
        found |= {"launches": counts.launches, "waits": counts.waits}
        return
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile, warned_waits() as waits:
        yield found
    found["launches"] = sum(is_launch(event.name) for event in profile.events())
    found["waits"] = len(waits)


def is_launch(call: str) -> bool:
    """Whether a call of CUDA's runtime or driver launches a kernel or a graph: cudaLaunchKernelExC, cuLaunchKernel."""
    return call.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch"))


@contextmanager
def warned_waits() -> Iterator[list[str]]:
    """What torch says of each wait of the host within."""
    before, waits = torch.cuda.get_sync_debug_mode(), []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode(before)
    waits += [str(warning.message) for warning in caught if "synchronizing CUDA operation" in str(warning.message)]


if __name__ == "__main__":
    sys.exit(main())
