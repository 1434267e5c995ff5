"""How the operators behave on a GPU: determinism, graphs, streams, synchronisation, autocast, torch.compile."""

import pytest
import torch
from problems import PROBLEMS

from bench.measuring.agreement import Result, disagreement


def assert_equal(left, right):
    for a, b in zip([*left[0], *left[1]], [*right[0], *right[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def assert_close(left, right, dtype=torch.float32):
    assert disagreement(Result(*left), Result(*right), dtype) is None


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", PROBLEMS)
def test_deterministic(name, device):
    problem = PROBLEMS[name](1000).place(device, torch.float32)
    first = problem.run()
    for _ in range(5):
        assert_equal(problem.run(), first)


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_synchronisation_with_the_host(name, cuda):
    problem = PROBLEMS[name]().place(cuda, torch.float32)
    problem.run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", PROBLEMS)
def test_captured_in_a_graph(name, cuda):
    problem, other = (PROBLEMS[name]().place(cuda, torch.float32) for _ in range(2))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            problem.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = problem.run()
    with torch.no_grad():
        for place, fresh in zip(problem.leaves, other.leaves, strict=True):
            fresh.mul_(0.5).add_(0.25)
            place.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    assert_close(captured, other.run())


@pytest.mark.parametrize("name", PROBLEMS)
def test_on_another_stream(name, cuda):
    problem, delayed = (PROBLEMS[name]().place(cuda, torch.float32) for _ in range(2))
    expected = problem.run()
    values = [leaf.detach().clone() for leaf in delayed.leaves]
    with torch.no_grad():
        for leaf in delayed.leaves:
            leaf.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: a kernel on another stream would read the zeros
        with torch.no_grad():
            for leaf, value in zip(delayed.leaves, values, strict=True):
                leaf.copy_(value)
        got = delayed.run()
    stream.synchronize()
    assert_close(got, expected)


@pytest.mark.parametrize("name", PROBLEMS)
def test_on_a_second_device(name, cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    second = torch.device("cuda", 1)
    got = PROBLEMS[name]().place(second, torch.float32).run()
    assert all(t.device == second for tensors in got for t in tensors)
    expected = PROBLEMS[name]().place(torch.device("cuda", 0), torch.float32).run()
    assert_close([[t.to("cuda:0") for t in tensors] for tensors in got], expected)


@pytest.mark.parametrize("name", PROBLEMS)
def test_under_autocast(name, device):
    problem = PROBLEMS[name]().place(device, torch.float32)
    expected = problem.run()
    with torch.autocast(device.type, torch.bfloat16):
        got = problem.run()
    assert all(g.dtype == torch.float32 for g in got[1])
    assert_close(got, expected, torch.bfloat16)


@pytest.mark.parametrize("name", PROBLEMS)
def test_compiled_as_a_full_graph(name, device):
    problem = PROBLEMS[name]().place(device, torch.float32)
    expected = problem.run()
    compiled = torch.compile(problem.function, fullgraph=True)
    outputs = compiled(problem.leaves, problem.fixed, problem.exact)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    chosen = [o for o in outputs if o.requires_grad]
    gradients = torch.autograd.grad(chosen, problem.leaves, problem.upstream(chosen)) if chosen else []
    assert_close(([o.detach() for o in outputs], gradients), expected)
