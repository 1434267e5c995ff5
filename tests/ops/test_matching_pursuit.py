import pytest
import torch
import torch.nn.functional as F

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


def test_bad_arguments():
    a, b = problems(2)
    with pytest.raises(TypeError, match=r"count: expected torch.int64"):
        ops.matching_pursuit(a, b, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="teacher: expected n = 24, got 23"):
        ops.matching_pursuit(a, b[:, :23], torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"candidates: expected torch.bool"):
        ops.matching_pursuit(a, b, torch.tensor([1, 2]), candidates=torch.ones(2, 24))
