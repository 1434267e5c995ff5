import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.measuring.agreement import disagreement
from bench.operators import measure as measure_module
from bench.operators.case import Case, Implementation
from bench.operators.measure import measure
from bench.operators.report import COLUMNS, as_json, as_markdown, make_rows
from bench.operators.work import moved

CPU = torch.device("cpu")
KEYS = {"op", "shape", "dtype", "impl", "fwd_ms", "fwd_bwd_ms", "peak_mb", "ratios"}


def refuse() -> tuple[torch.Tensor, ...]:
    raise RuntimeError("no kernel\nfor this")


def make_toy() -> Case:
    """Squares, by implementations that are right, wrong in the value, wrong in the gradient, or raise."""
    x = torch.linspace(1.0, 2.0, 5000).requires_grad_()
    in_parts = Implementation("compiled", lambda: (x**2,), note="parts")
    return Case(
        op="toy",
        detail="5000 numbers",
        device=CPU,
        leaves=[x],
        implementations=[
            Implementation("reference", lambda: (x * x,)),
            Implementation("fused", lambda: (x.square(),)),
            Implementation("compiled", refuse, otherwise=in_parts),
            Implementation("torchvision", refuse),
            Implementation("published_loop", lambda: (x * x.detach(),), once=True, scale=7.0, note="of 7"),
        ],
        work=moved(3 * 20000),
        compare=partial(disagreement, dtype=torch.float32),
    )


@pytest.fixture(scope="module")
def rows():
    toy, source = make_toy(), torch.zeros(1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_module, "ROUNDS_S", 0.01)
        measurements, seconds = measure(toy, {"copy": lambda: (source.clone(),)}, lambda step: None)
    assert seconds["copy"] > 0
    return make_rows(toy, "tiny", torch.float32, measurements, {"copy": 1e9, "product": 1e9})


def test_json_rows_have_the_documented_keys(rows):
    objects = as_json(rows)
    assert [row["impl"] for row in objects] == ["fused", "reference", "compiled", "torchvision", "published_loop"]
    assert all(set(row) >= KEYS for row in objects)
    fused = objects[0]
    assert set(fused["ratios"]) == {"reference", "compiled"}
    assert fused["ratios"]["reference"] == pytest.approx(objects[1]["fwd_bwd_ms"] / fused["fwd_bwd_ms"])
    assert 0 < fused["fwd_ms"] < fused["fwd_bwd_ms"]
    assert fused["gradient_mb"] == 0.02


def test_a_result_that_differs_gets_no_speed_up(rows):
    loop = rows[-1]
    assert loop.status == "differs"
    assert "gradient 0" in loop.reason
    assert loop.ratios == loop.forward_ratios == {}
    assert loop.rate is None
    assert loop.rate_fraction is None
    assert loop.fwd_bwd_ms > 0
    assert all("published_loop" not in row.ratios for row in rows)


def test_a_failure_is_told_in_its_row(rows):
    failed = rows[3]
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: no kernel for this")
    assert failed.fwd_ms is failed.fwd_bwd_ms is failed.peak_mb is None
    stand_in = rows[2]
    assert stand_in.status == "ok"
    assert stand_in.note == "parts: RuntimeError: no kernel for this"


def test_the_table_renders(rows):
    lines = as_markdown(rows, ["Machine: toy"]).splitlines()
    table = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert all(len(line) == len(COLUMNS) for line in table)
    cells = {line[3].strip(): [cell.strip() for cell in line] for line in table[2:]}
    assert cells["fused"][-4].endswith("x")
    assert cells["fused"][-2:] == ["failed", "differs"]
    assert cells["published_loop"][-5:-1] == ["differs", "differs", "differs", "differs"]
    assert "- Machine: toy" in lines
    assert any("published_loop: of 7; differs: gradient 0" in line for line in lines)


PEAK = """
import torch
from bench.measuring.passes import peak_extra_bytes

def allocate():
    torch.ones(96 << 20, dtype=torch.uint8)
    return torch.ones(48 << 20, dtype=torch.uint8)

peak, result = peak_extra_bytes(allocate, torch.device("cpu"))
assert result.numel() == 48 << 20
print(peak, peak_extra_bytes(lambda: None, torch.device("cpu"))[0])
"""


def test_peak_memory_sees_what_is_freed_again():
    """In a process of its own: what malloc holds back from other tests would hide some of it."""
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", PEAK], cwd=root, capture_output=True, text=True, check=True)
    peak, nothing = ended.stdout.split()
    if peak == "None":
        pytest.skip("this system does not tell the high-water mark of resident memory")
    assert (96 << 20) * 0.95 < int(peak) < (96 << 20) * 1.2
    assert int(nothing) < (96 << 20) * 0.1
