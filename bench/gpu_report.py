"""`python -m bench.gpu_report`: every GPU kernel as compiled for every architecture, held to its budget.

Needs no GPU: registers, spills, shared memory and instructions are read from the machine code, occupancy follows
from the architectures' limits, and the least times are an estimate by bytes and operations. `--host` instead shows what
the host spends on each operator: launches, copies and the processor's time, on a device that computes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.gpu.budget import load_budgets, make_budget, write_budgets
from bench.gpu.compiled import ARCHITECTURES, Compiled, compile_all, list_jobs, toolchain
from bench.gpu.cuda_library import CudaUnavailableError, compile_cuda, nvcc_version
from bench.gpu.host_budget import broken_host_budgets, load_host_budgets, measure_host, versions, write_host_budgets
from bench.gpu.judge import judge
from bench.gpu.mock import MockUnavailableError
from bench.gpu.occupancy import WARP, occupancy
from bench.gpu.roofline import CEILINGS, count
from bench.operators.shapes import COCO

COLUMNS = (
    *("kernel", "form", "sm", "warps", "registers", "spills", "shared", "occupancy", "16-byte loads"),
    *("16-byte stores", "atomics", "tensor core", "budget"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print, and return 1 where a budget is broken; or write the budgets."""
    options = _parse(argv)
    if options.host:
        return report_host(options.json, write_budgets=options.write_budgets)
    if options.kernel:
        jobs = [job for job in list_jobs(options.arch) if job.kernel in options.kernel]
        groups = [("triton", toolchain(), compile_all(jobs))]
    else:
        groups = _compile_everything(options.arch)
    if options.write_budgets:
        for name, made_with, kernels in groups:
            budgets = {(k.kernel, k.form, k.facts.arch): make_budget(k.facts, k.shared) for k in kernels}
            others = load_budgets(name)[1] if options.kernel else {}
            kept = {kernel: forms for kernel, forms in others.items() if kernel not in options.kernel}
            print(f"wrote {write_budgets(name, made_with, budgets, kept)}: {len(budgets)} budgets")
        return 0
    broken = 0
    for name, made_with, kernels in groups:
        budgets_made_with, budgets = load_budgets(name)
        own = {kernel: forms for kernel, forms in budgets.items() if not options.kernel or kernel in options.kernel}
        verdicts, remarks = judge(kernels, made_with, budgets_made_with, own)
        print(f"## {name}: {made_with}\n\n{as_table(kernels, verdicts)}\n")
        print("".join(f"- {remark}\n" for remark in remarks))
        broken += sum(map(bool, verdicts.values()))
    print(roofline_table())
    print(f"\n{broken} budgets broken" if broken else "\nall budgets kept")
    return 1 if broken else 0


def report_host(file: Path | None, *, write_budgets: bool) -> int:
    """Count and time all operators on the mock device, print, and return 1 where a budget is broken, 2 without it."""
    try:
        costs = measure_host()
    except MockUnavailableError as error:
        print(f"bench.gpu_report: --host {error}", file=sys.stderr)
        return 2
    if file:
        file.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    if write_budgets:
        print(f"wrote {write_host_budgets(costs)}: {len(costs)} budgets")
        return 0
    columns = ("operator", "dtype", "launches", "copies", "transfers", "waits", "host µs", "of it forward")
    rows = [[str(value) for value in asdict(cost).values()] for cost in costs]
    print(f"## Host, shape small: {versions()}\n\n{_markdown(columns, rows)}\n")
    broken = broken_host_budgets(costs, *load_host_budgets())
    print("\n".join(broken) or "all budgets kept")
    return 1 if broken else 0


def _compile_everything(architectures: Sequence[int]) -> list[tuple[str, str, list[Compiled]]]:
    """Name, compiler and kernels of each group; says so where there is no compiler for one."""
    groups = [("triton", toolchain(), compile_all(list_jobs(architectures)))]
    try:
        groups.append(("cuda", nvcc_version(), compile_cuda(architectures)))
    except CudaUnavailableError as error:
        print(f"CUDA C++ kernels: NOT CHECKED, {error}\n")
    return groups


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", type=int, choices=ARCHITECTURES, default=ARCHITECTURES)
    names = sorted({job.kernel for job in list_jobs()})
    parser.add_argument(
        "--kernel", nargs="+", choices=names, default=(), metavar="NAME", help="of Triton's; default: all"
    )
    parser.add_argument("--host", action="store_true", help="what the host spends on each operator instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --host: an object a row as well")
    parser.add_argument("--write-budgets", action="store_true", help="take what is there now as the budgets")
    options = parser.parse_args(argv)
    if options.json and not options.host:
        parser.error("argument --json: expected with --host")
    if options.write_budgets and set(options.arch) != set(ARCHITECTURES):
        parser.error("argument --write-budgets: expected all architectures, got --arch")
    return options


def as_table(kernels: Sequence[Compiled], verdicts: dict[tuple[str, str, int], list[str]]) -> str:
    """A markdown row for each kernel, form and architecture; a budget without a kernel has a row as well."""
    rows = {(k.kernel, k.form, k.facts.arch): _cells(k) for k in kernels}
    blank = ["-"] * (len(COLUMNS) - 4)
    lines = [
        [kernel, form, str(arch), *rows.get((kernel, form, arch), blank), "; ".join(verdict) or "kept"]
        for (kernel, form, arch), verdict in sorted(verdicts.items())
    ]
    return _markdown(COLUMNS, lines)


def _cells(kernel: Compiled) -> list[str]:
    facts = kernel.facts
    warps = facts.threads // WARP
    share = occupancy(facts.arch, warps, facts.registers, kernel.shared) if warps else 0.0
    return [
        str(warps),
        str(facts.registers),
        str(facts.spills),
        str(kernel.shared),
        f"{share:.0%}",
        f"{facts.loads128} of {facts.loads}",
        f"{facts.stores128} of {facts.stores}",
        f"{facts.atomics} ({facts.swaps} swaps)" if facts.swaps else str(facts.atomics),
        str(facts.products),
    ]


def roofline_table() -> str:
    """Least times of the operators on the shape `coco`."""
    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        for cost in count(COCO, dtype):
            least = [cost.seconds(ceiling, dtype) for ceiling in CEILINGS.values()]
            amounts = [f"{cost.bytes / 1e6:.1f}", f"{cost.operations / 1e9:.2f}", f"{cost.operations / cost.bytes:.1f}"]
            times = [f"{seconds * 1e6:.1f} ({bound})" for seconds, bound in least]
            lines.append([cost.op, cost.direction, str(dtype).removeprefix("torch."), *amounts, *times])
    columns = ("operator", "pass", "dtype", "MB", "GFLOP", "FLOP/B", *(f"{c.name} µs" for c in CEILINGS.values()))
    sources = "".join(
        f"- {c.name}: {c.memory / 1e12:g} TB/s, {c.float32 / 1e12:g} (float32) and {c.half / 1e12:g} TFLOP/s (half), "
        f"{c.source}\n"
        for c in CEILINGS.values()
    )
    head = "## Least times, shape coco: an ESTIMATE from counted bytes and operations, not a measurement"
    return f"{head}\n\n{sources}\n{_markdown(columns, lines)}"


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


if __name__ == "__main__":
    sys.exit(main())
