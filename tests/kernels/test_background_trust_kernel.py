import pytest
import torch
from kernel_cases import LAYOUTS, laid_out, pyramid

from gkd_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((8, 12), (3, 5), (1, 1))


def problem(
    dtypes=DTYPES[:1] * 2, layouts=("contiguous",) * 2, channels=(6, 16), prototypes=7, sizes=SIZES, offset=0.0
):
    """Maps of both spaces, prototypes and means near them."""
    maps = [
        [laid_out((f.float() + offset).to(dtype), layout) for f in pyramid(channels=c, sizes=sizes, seed=seed)]
        for seed, (dtype, layout, c) in enumerate(zip(dtypes, layouts, channels, strict=True))
    ]
    generator = torch.Generator().manual_seed(9)
    rows = [offset + torch.randn(len(sizes), prototypes, c, generator=generator) for c in channels]
    means = [offset + 0.1 * torch.randn(len(sizes), c, generator=generator) for c in channels]
    return *maps, *rows, *means


def agree(arguments, *, filled=False, tolerance=1e-5):
    """The kernels' trust beside the reference's in float64 on the same numbers."""
    exact = [[f.double() for f in a] if isinstance(a, list) else a.double() for a in arguments]
    with ops.use_backend("triton"):
        got = ops.background_trust(*arguments, filled=filled)
    with ops.use_backend("reference"):
        want = ops.background_trust(*exact, filled=filled)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance, equal_nan=True)
    return got


@pytest.mark.parametrize("student", LAYOUTS)
@pytest.mark.parametrize("teacher", LAYOUTS)
@pytest.mark.parametrize("dtypes", [DTYPES[:1] * 2, DTYPES[1:]])
def test_every_layout(student, teacher, dtypes):
    agree(problem(dtypes, (student, teacher)), tolerance=1e-5 if dtypes[0] == torch.float32 else 4e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_channels_cells_and_prototypes(layout, checker):
    given = problem(layouts=(layout,) * 2, channels=(40, 72), prototypes=70, sizes=((16, 20), (9, 15)))
    trust = agree(given)
    assert 0 < trust.mean() < 1
    assert checker.launches.count("background_trust_kernel") == 1
    assert checker.launches.count("centre_prototypes_kernel") == 1


def test_half_types_lose_nothing_to_large_means():
    """Values that half types hold exactly, and a mean that is ten times their deviation."""
    maps, others, *rest = problem((torch.bfloat16,) * 2, channels=(32, 32))
    plain = agree((maps, others, *rest), tolerance=4e-3)
    far = [[(f * 8).round() / 8 for f in level] for level in (maps, others)]
    shifted = [[(f + 10).bfloat16() for f in level] for level in far]
    moved = [t + 10 for t in rest]
    assert all(
        torch.equal(a + 10, b) for levels in zip(far, shifted, strict=True) for a, b in zip(*levels, strict=True)
    )
    agree((*shifted, *moved), tolerance=4e-3)
    assert plain.isfinite().all()


@pytest.mark.parametrize("filled", [False, True])
def test_rows_of_zeros_are_no_prototypes_where_the_bank_is_filled_up(filled):
    given = problem()
    for rows in given[2:4]:
        rows[:, 2:4] = 0.0
        rows[1] = 0.0
    trust = agree(given, filled=filled)
    assert ((trust[2 * 96 : 2 * 96 + 2 * 15] == 0).all()) == filled


def test_more_levels_than_a_launch_has(checker):
    agree(problem(sizes=((2, 3),) * 7))
    assert checker.launches.count("background_trust_kernel") == 2


@pytest.mark.parametrize(
    "change", [{"layouts": ("contiguous", "channels_last")}, {"dtypes": (torch.float32, torch.bfloat16)}]
)
def test_spaces_that_differ_have_a_launch_each(change, checker):
    agree(problem(**change), tolerance=4e-3)
    assert checker.launches.count("background_trust_kernel") == 2


def test_cells_and_prototypes_at_the_mean_have_no_direction():
    student, teacher, p, q, m, n = problem()
    for feature, mean in zip(student, m, strict=True):
        feature[0] = mean[:, None, None]
    p[0] = m[0]
    agree((student, teacher, p, q, m, n))


def test_not_a_number_stays_one():
    given = problem()
    given[0][0][0, 1, 2, 3] = given[1][1][1, 0, 0, 0] = torch.nan
    trust = agree(given)
    assert trust.isnan().sum() == 2


def test_nothing_to_compare_with():
    with ops.use_backend("triton"):
        assert (ops.background_trust(*problem(prototypes=0)) == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "sizes"), [*((d, SIZES) for d in DTYPES), (torch.bfloat16, ((40, 56), (7, 9)))])
def test_means(layout, dtype, sizes, checker):
    maps = [laid_out(f, layout) for f in pyramid(channels=70, sizes=sizes, dtype=dtype)]
    with ops.use_backend("triton"):
        means = ops.channel_means(maps)
    want = torch.stack([f.double().mean((0, 2, 3)) for f in maps])
    torch.testing.assert_close(means.double(), want, rtol=1e-5, atol=1e-6)
    assert checker.launches == ["channel_sum_kernel", "channel_mean_kernel"]


@pytest.mark.parametrize("change", [{"images": 0}, {"channels": 0}])
def test_means_of_nothing(change):
    with ops.use_backend("triton"):
        assert (ops.channel_means(pyramid(**change)) == 0).all()
