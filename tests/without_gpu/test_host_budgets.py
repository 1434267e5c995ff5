"""What each operator and the whole loss ask of the device, held to bench/gpu/budgets/host.json."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.gpu.host import COMPILED, HOST_CASES, HostCost, measure
from bench.gpu.host_budget import broken_host_budgets, load_host_budgets, versions, write_host_budgets
from gkd_fast import ops

# Inductor takes seconds for a graph: the compiled losses are looked at in one dtype.
CASES = [*((op, "float32") for op in HOST_CASES if op not in COMPILED), *((op, "bfloat16") for op in HOST_CASES)]


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_host_budgets(op, dtype):
    missing = {name: reason for name, reason in ops.backends().items() if reason != "available"}
    if missing:
        pytest.skip(f"needs every backend: {missing}")
    made_with, budgets = load_host_budgets()
    broken = broken_host_budgets([measure(op, dtype, timed=False)], made_with, budgets)
    assert not broken, "python -m bench.gpu_report --host --write-budgets takes what is meant:\n" + "\n".join(broken)


COST = HostCost("square", "float32", launches=3, copies=1, transfers=0, waits=0, host_us=None, forward_us=None)


def test_another_number_breaks_a_budget(tmp_path):
    made_with, budgets = load_host_budgets(write_host_budgets([COST], tmp_path / "host.json"))
    assert made_with == versions()
    assert broken_host_budgets([COST], made_with, budgets) == []
    for name in ("launches", "copies", "transfers", "waits"):
        more = replace(COST, **{name: getattr(COST, name) + 1})
        (broken,) = broken_host_budgets([more], made_with, budgets)
        assert f"{name}: {getattr(COST, name)}, got {getattr(COST, name) + 1}" in broken
    assert broken_host_budgets([replace(COST, launches=2)], made_with, budgets)
    assert broken_host_budgets([replace(COST, op="cube")], made_with, budgets)


def test_under_other_versions_only_more_breaks_a_budget(tmp_path):
    _, budgets = load_host_budgets(write_host_budgets([COST], tmp_path / "host.json"))
    assert broken_host_budgets([replace(COST, launches=2)], "torch 0.1", budgets) == []
    assert broken_host_budgets([replace(COST, launches=4)], "torch 0.1", budgets)
