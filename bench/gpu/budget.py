"""Budgets of compiled kernels, checked in as JSON under bench/gpu/budgets: what a kernel may take, and must keep.

A file holds {"made_with": version, "kernels": {kernel: {form: {architecture: budget}}}}. A budget has

    registers   at most, of a thread; a multiple of 8, the step in which the hardware hands them out
    shared      at most, bytes of a block
    swaps       at most, compare-and-swap atomics
    loads128    at least, loads of 16 bytes a thread; 1 where the kernel has any
    stores128   at least, likewise

and no kernel may spill, whatever its budget says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bench.gpu.cubin import Facts
from bench.gpu.occupancy import WARP, resident_blocks

FOLDER = Path(__file__).parent / "budgets"
REGISTER_STEP = 8
Budget = Mapping[str, int]


def make_budget(facts: Facts, shared: int) -> dict[str, int]:
    """The budget that a kernel just keeps; shared: bytes of a block, static and dynamic."""
    return {
        "registers": -(-facts.registers // REGISTER_STEP) * REGISTER_STEP,
        "shared": shared,
        "swaps": facts.swaps,
        "loads128": min(facts.loads128, 1),
        "stores128": min(facts.stores128, 1),
    }


def broken(facts: Facts, shared: int, budget: Budget) -> list[str]:
    """What a kernel takes beyond its budget, or lost of what it must keep, in words; empty: nothing."""
    most = {"registers": facts.registers, "shared": shared, "swaps": facts.swaps}
    found = [f"{name}: at most {budget[name]}, got {value}" for name, value in most.items() if value > budget[name]]
    least = {"loads128": facts.loads128, "stores128": facts.stores128}
    found += [f"{name}: at least {budget[name]}, got {value}" for name, value in least.items() if value < budget[name]]
    if facts.spills:
        found.append(f"spills: at most 0, got {facts.spills} instructions on {facts.stack} bytes of stack")
    return found


def not_launchable(facts: Facts, shared: int) -> list[str]:
    """Why not even one block fits on a multiprocessor, in words; empty: it does."""
    warps = facts.threads // WARP
    if not warps:
        return ["launch: expected launch bounds, got none"]
    if resident_blocks(facts.arch, warps, facts.registers, shared):
        return []
    return [f"launch: {warps} warps of {facts.registers} registers with {shared} bytes of shared memory do not fit"]


def load_budgets(name: str, folder: Path = FOLDER) -> tuple[str, dict[str, dict[str, dict[str, Budget]]]]:
    """Compiler version that a file was made with, and its budgets by kernel, form and architecture.

    Raises:
        ValueError: the file is missing or not of this form.
    """
    path = folder / f"{name}.json"
    try:
        content = json.loads(path.read_text())
        return content["made_with"], content["kernels"]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: expected budgets (python -m bench.gpu_report --write-budgets), got {error}"
        ) from None


def write_budgets(
    name: str,
    made_with: str,
    budgets: Mapping[tuple[str, str, int], Budget],
    kept: Mapping[str, Mapping[str, Mapping[str, Budget]]],
    folder: Path = FOLDER,
) -> Path:
    """Write the budgets, given by kernel, form and architecture, beside those kept of other kernels, in order."""
    kernels: dict[str, dict[str, dict[str, Budget]]] = {}
    for (kernel, form, arch), budget in sorted(budgets.items()):
        kernels.setdefault(kernel, {}).setdefault(form, {})[str(arch)] = budget
    kernels = dict(sorted((kernels | kept).items()))
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(_compact(made_with, kernels))
    return path


def _compact(made_with: str, kernels: Mapping[str, Mapping[str, Mapping[str, Budget]]]) -> str:
    """JSON with one line a budget, so that a change shows as one line."""
    parts = []
    for kernel, forms in kernels.items():
        lines = [
            f"   {json.dumps(form)}: {{\n"
            + ",\n".join(f"    {json.dumps(arch)}: {json.dumps(budget)}" for arch, budget in by_arch.items())
            + "\n   }"
            for form, by_arch in forms.items()
        ]
        parts.append(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(lines) + "\n  }")
    head = f'{{\n "made_with": {json.dumps(made_with)},\n "kernels": {{\n'
    return head + ",\n".join(parts) + "\n }\n}\n"
