"""`python -m bench.run`: measure the operators and print one table."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.measuring.machine import describe, make_floors
from bench.measuring.options import Parser, is_writable
from bench.operators.cases import CASES, build_case
from bench.operators.measure import measure
from bench.operators.report import Row, as_json, as_markdown, make_rows
from bench.operators.shapes import DTYPES, SHAPES, Shape


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print the table, write the JSON file."""
    options = _parse(argv)
    rows, header = run(options.op, SHAPES[options.shape], options.dtype, torch.device(options.device))
    print(as_markdown(rows, header))
    if options.json:
        options.json.write_text(json.dumps(as_json(rows), indent=1) + "\n")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m bench.run", description="Speed, memory and agreement of gkd_fast.ops.")
    parser.add_argument(
        "--op",
        nargs="+",
        action="extend",
        choices=CASES,
        metavar="NAME",
        help=f"default: all of {', '.join(CASES)}",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="coco")
    parser.add_argument("--dtype", nargs="+", action="extend", choices=DTYPES, help="default: float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: expected a device that torch can use, got cuda without a GPU or its driver")
    if options.json and not is_writable(options.json):
        parser.error(f"argument --json: expected a file in a folder that can be written to, got {options.json}")
    options.op = list(dict.fromkeys(options.op or CASES))
    options.dtype = [DTYPES[name] for name in dict.fromkeys(options.dtype or ["float32"])]
    return options


def run(
    names: Sequence[str], shape: Shape, dtypes: Sequence[torch.dtype], device: torch.device
) -> tuple[list[Row], list[str]]:
    """Rows of all cases, and the header: machine, versions, and the rates seen beside the cases."""
    rows: list[Row] = []
    seen: dict[str, list[float]] = {}
    for name in names:
        for dtype in dtypes:
            case = build_case(name, shape, dtype, device)
            product_dtype = case.work.product_dtype or dtype
            floors = make_floors(product_dtype, device)
            label = f"{name} {shape.name} {str(dtype).removeprefix('torch.')}"
            measurements, seconds = measure(
                case,
                {floor: entry.call for floor, entry in floors.items()},
                lambda step, label=label: print(f"{label}: {step}", file=sys.stderr, flush=True),
            )
            rates = {floor: entry.amount / seconds[floor] for floor, entry in floors.items()}
            rows += make_rows(case, shape.name, dtype, measurements, rates)
            for floor, rate in rates.items():
                unit = f"{product_dtype} product".removeprefix("torch.") if floor == "product" else floor
                seen.setdefault(unit, []).append(rate)
            torch.compiler.reset()
    return rows, [*describe(device), f"Rates beside the cases, medians: {_rates_text(seen)}"]


def _rates_text(seen: dict[str, list[float]]) -> str:
    units = {True: "GFLOP/s", False: "GB/s"}
    return ", ".join(
        f"{name} {statistics.median(rates) / 1e9:.1f} {units[name.endswith('product')]}" for name, rates in seen.items()
    )


if __name__ == "__main__":
    sys.exit(main())
