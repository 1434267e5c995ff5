import pytest
import torch
import torch.nn.functional as F
from ops_cases import LAYOUTS, laid_out, pyramid

from gkd_fast import ops

F64 = torch.float64


def problem(dtype=F64, layout="contiguous", *, channels=(5, 7), prototypes=6, mean=2.0, **sizes):
    """Maps of both spaces around a mean, prototypes, and the means of their channels."""
    maps = [
        [laid_out((f + mean).to(dtype), layout) for f in pyramid(channels=c, seed=seed, dtype=F64, **sizes)]
        for seed, c in enumerate(channels)
    ]
    generator = torch.Generator().manual_seed(9)
    exact = F64 if dtype == F64 else torch.float32
    rows = [mean + torch.randn(len(maps[0]), prototypes, c, generator=generator, dtype=F64) for c in channels]
    return *maps, *(r.to(exact) for r in rows), *(ops.channel_means(m) for m in maps)


def by_loops(student, teacher, p, q, mu, nu):
    """Cell after cell, prototype after prototype."""
    found = []
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        for a, b in zip(s.permute(0, 2, 3, 1).flatten(0, 2), t.permute(0, 2, 3, 1).flatten(0, 2), strict=True):
            own, other = (
                max(float(F.cosine_similarity(x - m[level], row - m[level], dim=0)) for row in rows[level])
                for x, rows, m in ((a, p, mu), (b, q, nu))
            )
            found.append(max(0.0, other) * max(0.0, 1 - abs(own - other)))
    return torch.tensor(found, dtype=F64)


def test_equals_loops(backend):
    given = problem(sizes=((3, 4), (2, 1)))
    trust = ops.background_trust(*given)
    torch.testing.assert_close(trust, by_loops(*given))
    assert 0 < trust.mean() < 1


def test_means(backend):
    for layout in LAYOUTS:
        maps = [laid_out(f, layout) for f in pyramid(channels=70, sizes=((70, 90), (1, 1)))]
        want = torch.stack([f.double().mean((0, 2, 3)) for f in maps])
        torch.testing.assert_close(ops.channel_means(maps).double(), want, rtol=1e-6, atol=1e-7)
    assert (ops.channel_means(pyramid(images=0)) == 0).all()


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_error_is_within_the_reference_s(dtype, layout):
    """Both are held against float64 on the same numbers, more cells and prototypes than a tile has."""
    given = problem(dtype, layout, channels=(33, 80), prototypes=150, sizes=((13, 17), (7, 9)))
    exact = [[f.double() for f in g] if isinstance(g, list) else g.double() for g in given]
    with ops.use_backend("reference"):
        truth, reference = ops.background_trust(*exact), ops.background_trust(*given)
    with ops.use_backend("cpu"):
        kernel = ops.background_trust(*given)
    assert kernel.dtype == reference.dtype == (F64 if dtype == F64 else torch.float32)
    errors = [(got - truth).square().mean().sqrt().item() for got in (kernel, reference)]
    assert errors[0] <= max(1.5 * errors[1], 1e-15)
    assert errors[1] < (1e-14 if dtype == F64 else 1e-6)


@pytest.mark.parametrize("filled", [False, True])
def test_rows_of_zeros_are_no_prototypes_where_the_bank_is_filled_up(backend, filled):
    student, teacher, p, q, *means = problem()
    want = ops.background_trust(student, teacher, p, q, *means)
    p, q = (F.pad(rows, (0, 0, 0, 3)) for rows in (p, q))
    assert torch.equal(ops.background_trust(student, teacher, p, q, *means, filled=filled), want) == filled
    p[1], q[1] = 0.0, 0.0
    trust = ops.background_trust(student, teacher, p, q, *means, filled=filled)
    assert (trust[2 * 13 * 17 :][: 2 * 7 * 9] == 0).all() == filled


def test_what_has_no_direction(backend):
    student, teacher, p, q, mu, nu = problem()
    for f, g, m, n in zip(student, teacher, mu, nu, strict=True):
        f[0], g[1] = m[:, None, None], n[:, None, None]
    p[:, 0], q[:, 1] = mu, nu
    trust = ops.background_trust(student, teacher, p, q, mu, nu)
    levels = [part.view(2, -1) for part in trust.split([f[:, 0].numel() for f in student])]
    assert trust.isfinite().all()
    assert all((level[1] == 0).all() for level in levels)
    assert any((level[0] > 0).any() for level in levels)


@pytest.mark.parametrize("change", [{"prototypes": 0}, {"images": 0}])
def test_nothing_to_compare_with(backend, change):
    given = problem(**change)
    trust = ops.background_trust(*given)
    assert trust.shape == (sum(f.shape[0] * f.shape[2] * f.shape[3] for f in given[0]),)
    assert (trust == 0).all()


def test_not_a_number_stays_one(backend):
    given = problem()
    given[0][0][0, 1, 2, 3] = given[1][1][1, 0, 0, 0] = torch.nan
    assert ops.background_trust(*given).isnan().sum() == 2


def test_same_bits_for_any_number_of_threads():
    given, threads, results = problem(torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            with ops.use_backend("cpu"):
                results.append((ops.background_trust(*given), ops.channel_means(given[0])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    given = problem(dtype)
    torch.library.opcheck(torch.ops.gkd_fast.channel_means.default, (given[0],))
    torch.library.opcheck(torch.ops.gkd_fast.background_trust.default, (*given, True))


def test_one_graph(backend):
    def trust(student, teacher, p, q):
        means = ops.channel_means(student), ops.channel_means(teacher)
        return ops.background_trust(student, teacher, p, q, *means)

    torch._dynamo.reset()
    given = problem(torch.float32)[:4]
    torch.testing.assert_close(torch.compile(trust, fullgraph=True, backend="aot_eager")(*given), trust(*given))


def test_gradients_stop(backend):
    student, teacher, *rest = problem(torch.float32)
    for feature in (*student, *teacher):
        feature.requires_grad_()
    assert not ops.background_trust(student, teacher, *rest).requires_grad
    assert not ops.channel_means(student).requires_grad


def test_bad_arguments():
    student, teacher, p, q, mu, nu = problem()
    with pytest.raises(ValueError, match=r"teacher\[1\]: expected shape \(2, 7, 7, 9\) as the student, got \(2, 7, 3"):
        ops.background_trust(student, [teacher[0], teacher[1][:, :, :3], teacher[2]], p, q, mu, nu)
    with pytest.raises(ValueError, match="teacher: expected at least one channel, got none"):
        ops.background_trust(student, [t[:, :0] for t in teacher], p, q, mu, nu)
    with pytest.raises(ValueError, match="student_prototypes: expected C = 5, got 4"):
        ops.background_trust(student, teacher, p[..., :4], q, mu, nu)
    with pytest.raises(ValueError, match="teacher_means: expected L = 3, got 2"):
        ops.background_trust(student, teacher, p, q, mu, nu[:2])
    with pytest.raises(ValueError, match="teacher_prototypes: expected P = 6, got 5"):
        ops.background_trust(student, teacher, p, q[:, :5], mu, nu)
    with pytest.raises(TypeError, match=r"student_means: expected torch.float32 or"):
        ops.background_trust(student, teacher, p, q, mu.long(), nu)
