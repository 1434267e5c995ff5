"""Two training processes of one thread each against one."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from typing import Any

import torch

from bench.step.loops import Scale, make_data, make_loop
from bench.step.measure import cycle, seconds_of
from gkd_fast import parallel
from gkd_fast.data.loader import build_loader
from gkd_fast.training.distilling import passed_batches
from gkd_fast.training.distributed import process_group


def worker(steps: int, scale: Scale) -> dict[str, Any]:
    """Images a second of all processes together, in one of them."""
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        data = make_data(scale)
        loop = make_loop("c", "faster_rcnn", scale, data.classes)
        world = parallel.world_size()
        loader = build_loader(
            data, batch_size=scale.batch * world, shuffle=True, seed=0, workers=0, share=(parallel.rank(), world)
        )
        batches = cycle(loader)
        candidates = passed_batches(loop.adapter, [next(batches)], torch.device("cpu"))
        loop.distiller.refresh(candidates, images=list(range(len(data))))
        loop.adapter.model.train()
        for _ in range(2):
            loop(next(batches), 1.0)
        seconds = statistics.median(seconds_of(lambda: loop(next(batches), 1.0)) for _ in range(steps))
        return {"images_per_second": scale.batch * world / seconds, "rank": parallel.rank()}


def measure_scaling(steps: int) -> dict[str, Any]:
    """Images a second of one process with one thread, and of two."""
    rates = {}
    for processes in (1, 2):
        print(f"scaling: {processes} processes", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "bench.step", "--worker", "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = [json.loads(line) for line in re.findall(r"\{[^{}]*\}", output)]
        rates[processes] = next(item["images_per_second"] for item in found if item["rank"] == 0)
    ratio = rates[2] / rates[1]
    text = f"{rates[1]:.2f} images/s with one process, {rates[2]:.2f} with two: {ratio:.2f} times"
    return {"one": rates[1], "two": rates[2], "ratio": ratio, "text": text}
