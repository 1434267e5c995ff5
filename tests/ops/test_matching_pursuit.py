import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_fast import ops


def by_residuals(a, b, picks, alpha, repeat, candidates=None):
    """The objective as it is written, with the residual vectors themselves."""
    residual_a, residual_b = a.clone(), b.clone()
    free = torch.ones(len(a), dtype=torch.bool) if candidates is None else candidates.clone()
    chosen = []
    for _ in range(picks):
        if not free.any():
            chosen.append(-1)
            continue
        best, best_cost, best_weights = -1, float("inf"), None
        for k in range(len(a)):
            u, v = residual_a @ a[k], residual_b @ b[k]
            w_a = ((1 + alpha) * u + alpha * v) / (1 + 2 * alpha)
            w_b = ((1 + alpha) * v + alpha * u) / (1 + 2 * alpha)
            cost = (residual_a - w_a[:, None] * a[k]).square().sum()
            cost += (residual_b - w_b[:, None] * b[k]).square().sum() + alpha * (w_a - w_b).square().sum()
            if free[k] and cost < best_cost:
                best, best_cost, best_weights = k, cost, (w_a, w_b)
        residual_a -= best_weights[0][:, None] * a[best]
        residual_b -= best_weights[1][:, None] * b[best]
        free[best] = repeat
        chosen.append(best)
    return chosen


def problems(count, samples=24, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, samples, 7, generator=generator, dtype=torch.float64)
    b = torch.randn(count, samples, 11, generator=generator, dtype=torch.float64)
    return F.normalize(a, dim=2).to(dtype), F.normalize(b, dim=2).to(dtype)


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 10.0])
def test_minimises_the_objective(backend, alpha, repeat):
    a, b = problems(3)
    count = torch.tensor([24, 13, 6])
    got = ops.matching_pursuit(a, b, count, picks=8, alpha=alpha, repeat=repeat)
    for problem, n in enumerate(count.tolist()):
        want = by_residuals(a[problem, :n], b[problem, :n], 8, alpha, repeat)
        assert got[problem].tolist() == want


def test_candidates_explain_all_rows(backend):
    a, b = problems(2)
    candidates = torch.rand(2, 24, generator=torch.Generator().manual_seed(4)) < 0.3
    count = torch.tensor([24, 24])
    got = ops.matching_pursuit(a, b, count, picks=6, repeat=True, candidates=candidates)
    for problem in range(2):
        want = by_residuals(a[problem], b[problem], 6, 10.0, True, candidates[problem])
        assert got[problem].tolist() == want


def test_padding_holds_anything_and_empty_problems_pick_nothing(backend):
    a, b = problems(3)
    count = torch.tensor([5, 0, 24])
    want = ops.matching_pursuit(a, b, count)
    assert (want[1] == -1).all()
    assert (want[0] >= 0).sum() == 5
    a[0, 5:], b[0, 5:] = float("nan"), float("inf")
    assert torch.equal(ops.matching_pursuit(a, b, count), want)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_pick_from(backend, shape):
    a = torch.zeros(*shape, 4)
    out = ops.matching_pursuit(a, a, torch.zeros(shape[0], dtype=torch.int64), picks=3)
    assert out.shape == (shape[0], 3)
    assert (out == -1).all()


def both_backends(*arguments, **options):
    picks = []
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            picks.append(ops.matching_pursuit(*arguments, **options))
    return picks


@pytest.mark.parametrize(("samples", "channels"), [(1, 1), (5, 33), (63, 65), (97, 256), (400, 8)])
@pytest.mark.parametrize("repeat", [False, True])
def test_kernel_equals_reference(samples, channels, repeat):
    generator = torch.Generator().manual_seed(samples)
    a, b = (
        F.normalize(torch.randn(6, samples, size, generator=generator, dtype=torch.float64), dim=2)
        for size in (channels, channels + 3)
    )
    count = torch.randint(0, samples + 1, (6,), generator=generator)
    count[0] = samples
    candidates = torch.rand(6, samples, generator=generator) < 0.7
    for dtypes in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.float32, torch.float64)):
        arguments = a.to(dtypes[0]), b.to(dtypes[1]), count
        assert torch.equal(*both_backends(*arguments, candidates=candidates, repeat=repeat))


@st.composite
def pursuits(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    groups, samples = draw(st.integers(0, 3)), draw(st.integers(0, 70))
    # Rows of any length: of two normalised samples either explains the other equally well.
    spaces = [
        torch.randn(groups, samples, draw(st.integers(0, 40)), generator=generator, dtype=torch.float64)
        for _ in range(2)
    ]
    count = torch.randint(0, samples + 3, (groups,), generator=generator)
    candidates = torch.rand(groups, samples, generator=generator) < draw(st.sampled_from((0.0, 0.5, 1.0)))
    options = {"picks": draw(st.integers(0, 12)), "alpha": draw(st.floats(0.0, 50.0)), "repeat": draw(st.booleans())}
    return (*spaces, count), {**options, "candidates": candidates}


@given(pursuits())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_random_problems(case):
    arguments, options = case
    assert torch.equal(*both_backends(*arguments, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_storage(dtype):
    a, b = problems(4, samples=63, dtype=dtype)
    count = torch.tensor([63, 63, 40, 7])
    with ops.use_backend("cpu"):
        picks = ops.matching_pursuit(a, b, count)
        assert torch.equal(picks, ops.matching_pursuit(a.float(), b.float(), count))
    with ops.use_backend("reference"):
        assert torch.equal(picks, ops.matching_pursuit(a.double(), b.double(), count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_picks_leave_small_residuals(dtype):
    """The kernel keeps differences of large numbers: after many picks it still sees what the residuals show."""
    a, b = problems(16, samples=60)
    count = torch.full((16,), 60)
    with ops.use_backend("cpu"):
        got = ops.matching_pursuit(a.to(dtype), b.to(dtype), count, picks=60)
    with ops.use_backend("reference"):
        truth = ops.matching_pursuit(a.to(dtype).double(), b.to(dtype).double(), count, picks=60)
    assert torch.equal(got, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [40, 101, 200])
def test_equal_samples_tie_and_the_first_is_picked(samples, dtype):
    a, b = problems(8, samples=samples, dtype=dtype)
    generator = torch.Generator().manual_seed(samples)
    original = torch.randint(0, samples // 4, (samples,), generator=generator)
    a, b = a[:, original], b[:, original]
    first = torch.stack([(original == value).nonzero()[0, 0] for value in original.tolist()])
    with ops.use_backend("cpu"):
        picks = ops.matching_pursuit(a, b, torch.full((8,), samples), picks=8, repeat=True)
        assert torch.equal(picks, first[picks])
        picks = ops.matching_pursuit(a, b, torch.full((8,), samples), picks=samples)
    for row in picks.tolist():
        assert sorted(row) == list(range(samples))
        for value in range(samples // 4):
            equal = [pick for pick in row if original[pick] == value]
            assert equal == sorted(equal)


def test_nan_in_a_sample_is_no_reason_to_crash(backend):
    a, b = problems(2)
    a[0, 3] = float("nan")
    picks = ops.matching_pursuit(a, b, torch.tensor([24, 24]))
    assert torch.equal(picks[0], torch.arange(10))
    assert (picks[1] >= 0).all()


def test_same_picks_for_any_number_of_threads():
    a, b = problems(9, samples=63, dtype=torch.float32)
    count = torch.arange(9) * 7 + 3
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            with ops.use_backend("cpu"):
                results.append(ops.matching_pursuit(a, b, count))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("samples", [0, 24])
def test_opcheck(dtype, samples):
    a, b = problems(3, samples=samples, dtype=dtype)
    arguments = a, b.float(), torch.tensor([24, 0, 5]), torch.ones(3, samples, dtype=torch.bool), 4, 10.0, False
    torch.library.opcheck(torch.ops.gkd_fast.matching_pursuit.default, arguments)


def test_bad_arguments():
    a, b = problems(2)
    with pytest.raises(TypeError, match=r"count: expected torch.int64"):
        ops.matching_pursuit(a, b, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="teacher: expected n = 24, got 23"):
        ops.matching_pursuit(a, b[:, :23], torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"candidates: expected torch.bool"):
        ops.matching_pursuit(a, b, torch.tensor([1, 2]), candidates=torch.ones(2, 24))
