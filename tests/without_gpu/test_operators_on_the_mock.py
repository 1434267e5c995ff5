"""The operators' real host side on the mock device: graphs, streams, a second device, waits; each net proves itself."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from bench.gpu.mock import counted
from gkd_fast import ops
from gkd_fast.kernels import pairwise_discrepancy

sys.path.append(str(Path(__file__).parents[1] / "gpu"))
from problems import PROBLEMS

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
TRITON_OPERATORS = ("prototype_projection", "pairwise_discrepancy", "masked_imitation")


def placed(name, device=FIRST, dtype=torch.float32, count=63):
    """The problem on the mock, run once, so that its kernels are compiled."""
    backend = "triton" if name in TRITON_OPERATORS else "cuda"
    reason = ops.backends()[backend]
    if reason != "available":
        pytest.skip(f"{name}: {reason}")
    problem = PROBLEMS[name](count).place(device, dtype)
    problem.run()
    return problem


@pytest.mark.parametrize("count", [63, 1, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PROBLEMS)
def test_no_launch_is_refused_and_nothing_waits(name, dtype, count):
    problem = placed(name, dtype=dtype, count=count)
    with counted() as counts:
        _, gradients = problem.run()
    assert counts.waits == counts.transfers == 0
    assert counts.launches > 0 or count == 0
    for gradient, leaf in zip(gradients, problem.leaves, strict=True):
        assert gradient.dtype == leaf.dtype
        assert gradient.stride() == leaf.stride()


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_whole_pass_is_captured_in_a_graph(name):
    problem = placed(name)
    with counted() as counts, torch.cuda.graph(torch.cuda.CUDAGraph()):
        problem.run()
    assert counts.captured == counts.launches > 0


def test_a_wait_in_a_graph_is_refused():
    x = torch.ones(3, device=FIRST)
    with pytest.raises(RuntimeError, match="captur"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.sum().item()


def test_work_beside_the_captured_stream_is_refused():
    x, other = torch.ones(3, device=FIRST), torch.cuda.Stream()
    graph = torch.cuda.graph(torch.cuda.CUDAGraph())
    with pytest.raises(RuntimeError, match="captur"), graph, torch.cuda.stream(other):
        x.add_(1)


def test_random_numbers_in_a_graph_are_allowed():
    """Torch seeds them on another stream, and waits for it."""
    with counted() as counts, torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.rand(3, device=FIRST)
    assert counts.captured == 1


@pytest.mark.parametrize("name", PROBLEMS)
def test_tensors_of_a_second_device_are_worked_on_there(name):
    problem = placed(name, SECOND)
    with counted() as counts:
        outputs, gradients = problem.run()
    assert counts.launches_of[0] == 0
    assert counts.launches_of[1] == counts.launches > 0
    assert {tensor.device for tensor in (*outputs, *gradients)} == {SECOND}
    assert torch.cuda.current_device() == 0


def test_a_launcher_that_forgets_the_device_is_seen(monkeypatch):
    problem = placed("pairwise_discrepancy", SECOND)
    monkeypatch.setattr(pairwise_discrepancy, "on_device_of", lambda tensor: nullcontext())
    with counted() as counts:
        problem.outputs()
    assert counts.launches_of[0] > 0


def test_a_stream_of_another_device_is_refused():
    with torch.cuda.device(1):
        handle = torch.cuda.Stream().cuda_stream
    x = torch.ones(3, device=FIRST)
    stream = torch.cuda.ExternalStream(handle, device=FIRST)
    with pytest.raises(RuntimeError, match="stream of another device"), torch.cuda.stream(stream):
        x.add_(1)


@triton.jit
def filled(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), 1.0)


def test_an_impossible_launch_is_refused():
    x = torch.ones(8, device=FIRST)
    with pytest.raises(RuntimeError, match="invalid configuration"):
        filled[(1, 70000)](x, BLOCK=8)


def test_multiplications_and_additions_are_fused_whatever_the_default(monkeypatch):
    monkeypatch.setattr(triton.knobs.language, "default_fp_fusion", False)
    sums, labels = torch.zeros(8, device=FIRST), torch.zeros(8, dtype=torch.int64, device=FIRST)
    plain = filled[(1,)](sums, BLOCK=4)  # sizes that no other test has compiled
    ours = pairwise_discrepancy.discrepancy_mean_kernel[(1,)](
        sums, labels, labels, sums, sums, 1, 1, 1, 1, **pairwise_discrepancy.MEAN | {"BLOCK": 512}
    )
    assert (plain.metadata.enable_fp_fusion, ours.metadata.enable_fp_fusion) == (False, True)


def test_a_compiled_form_is_only_launched_again_with_what_it_was_compiled_for():
    def form(sums, count=1):
        labels = torch.zeros(8, dtype=torch.int64, device=sums.device)
        configuration = pairwise_discrepancy.MEAN | {"BLOCK": 256}  # no other test's
        with torch.cuda.device(sums.device):
            kernel = pairwise_discrepancy.discrepancy_mean_kernel[(1,)]
            return kernel(sums, labels, labels, sums, sums, count, 1, 1, 1, **configuration)

    sums = torch.zeros(12, device=FIRST)
    with counted() as counts:
        forms = [form(sums) for _ in range(3)]
    assert counts.launches == 3 + 3  # and the labels'
    assert forms[0] is forms[1] is forms[2] is form(sums, count=2**31 - 1)
    others = [form(sums[1:]), form(sums, count=2**31), form(sums.half())]
    assert len({id(each) for each in (forms[0], *others, form(sums.to(SECOND)))}) == 5
    assert form(sums) is forms[0]
    assert [form(sums[1:]), form(sums, count=2**31)] == others[:2]


def test_what_is_asked_of_the_device_is_counted():
    x = torch.ones(64, 64, device=FIRST)
    host = torch.empty(64, 64, pin_memory=True)
    cases = {
        "launches": lambda: x + 1,
        "copies": lambda: x.clone(),
        "transfers": lambda: host.copy_(x, non_blocking=True),
        "waits": lambda: torch.cuda.synchronize(),
    }
    for name, act in cases.items():
        with counted() as counts:
            act()
        seen = {each: getattr(counts, each) for each in cases}
        assert seen == {**dict.fromkeys(cases, 0), name: 1}
    with counted() as counts:
        x @ x
    assert counts.launches == 1
