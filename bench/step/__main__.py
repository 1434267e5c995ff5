"""`python -m bench.step`: one training step and its parts, beside torchvision's loop with the published algorithm."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.measuring.machine import describe
from bench.measuring.options import Parser, is_writable
from bench.step.counts import MAIN_JOB, count, lines
from bench.step.loops import VARIANTS, Scale
from bench.step.measure import DETECTORS, measure
from bench.step.scaling import measure_scaling, worker
from bench.step.table import table


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print the tables, write the JSON file."""
    options = _parse(argv)
    if options.worker:
        print(json.dumps(worker(options.steps, Scale())), flush=True)
        return 0
    if options.counts:
        counted = count(options.detectors, options.variants, MAIN_JOB)
        print("\n".join(lines(counted)))
        if options.json:
            options.json.write_text(json.dumps({"rows": [asdict(row) for row in counted]}, indent=1) + "\n")
        return 0
    rows = measure(options.detectors, options.variants, options.steps, Scale())
    text = [*describe(torch.device("cpu")), "", *table(rows)]
    scaling = measure_scaling(options.steps) if options.scaling else None
    if scaling:
        text += [
            "",
            "Scaling, Faster R-CNN, --amp, one thread a process, 4 images a process and step: " + scaling["text"],
        ]
    print("\n".join(text))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(r) for r in rows], "scaling": scaling}, indent=1) + "\n")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m bench.step", description="Speed and memory of one training step.")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="V")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of every loop (default: 5)")
    parser.add_argument(
        "--counts", action="store_true", help="count kernels and waits of a step of the main job's size instead"
    )
    parser.add_argument("--scaling", action="store_true", help="two processes against one, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"argument --steps: expected a positive number, got {options.steps}")
    if options.json and not is_writable(options.json):
        parser.error(f"argument --json: expected a file in a folder that can be written to, got {options.json}")
    return options


if __name__ == "__main__":
    sys.exit(main())
