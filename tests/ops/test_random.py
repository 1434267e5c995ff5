"""Drawn at random: the kernels beside the references in float64, on the same numbers."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import LAYOUTS, NAN, STRIDES, laid_out

from gkd_fast import ops

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
DTYPES = st.sampled_from((torch.float64, torch.float32, torch.bfloat16, torch.float16))
LEVELS = st.integers(0, 3)
ROWS = st.sampled_from((0, 1, 2, 13, 63))
CHANNELS = st.sampled_from((0, 1, 3, 17, 63, 65))
SEEDS = st.integers(0, 2**31)


def run(backend, function, leaves, weights):
    """Outputs, and the gradients of their weighted sum, of one backend."""
    with ops.use_backend(backend):
        outputs = function(*leaves)
        total = sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs, weights, strict=True))
        return outputs, torch.autograd.grad(total, leaves)


def against_float64(function, tensors, weights):
    """Results of the kernel, and those of the reference in float64 from the same numbers."""
    same, exact = ([t.detach().requires_grad_() for t in group] for group in (tensors, [t.double() for t in tensors]))
    return run("cpu", function, same, weights), run("reference", function, exact, weights)


def assert_near(got, want, scale=1.0):
    """Within the error of sums of terms as large as `scale` in float32 (float64), rounded to the result's dtype."""
    tolerance = 1e-12 if got.dtype == torch.float64 else 1e-5
    rtol = max(2 * torch.finfo(got.dtype).eps, tolerance)
    torch.testing.assert_close(got.double() / scale, want / scale, rtol=rtol, atol=tolerance)


def lengths(vectors):
    """Lengths [L,B,1], 1 for a vector of 0: the gradient of a cosine is as large as 1 / length."""
    length = vectors.detach().double().norm(dim=2, keepdim=True)
    return length.masked_fill(length == 0, 1.0)


@st.composite
def rows(draw, shape, dtype=DTYPES):
    """[L,B,C] in a random dtype, some rows 0, perhaps with strides that are not those of a new tensor."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    vectors = torch.randn(*shape, generator=generator, dtype=torch.float64)
    vectors *= torch.rand(*shape[:2], 1, generator=generator) > 0.1
    vectors = vectors.to(draw(dtype))
    return vectors.transpose(1, 2).contiguous().transpose(1, 2) if draw(st.booleans()) else vectors


@st.composite
def projections(draw):
    levels, channels = draw(LEVELS), draw(CHANNELS)
    x, p = (draw(rows((levels, draw(ROWS), channels))) for _ in range(2))
    weight = torch.randn(levels, x.shape[1], p.shape[1], generator=torch.Generator().manual_seed(draw(SEEDS)))
    return x, p, weight


@given(projections())
@SETTINGS
def test_prototype_projection(case):
    x, p, weight = case

    def cosines(x, p):
        return (ops.prototype_projection(x, p),)

    (got, gradients), (want, want_gradients) = against_float64(cosines, (x, p), (weight,))
    assert got[0].dtype == (torch.float64 if torch.float64 in (x.dtype, p.dtype) else torch.float32)
    assert_near(got[0], want[0])
    for vectors, gradient, truth, terms in zip((x, p), gradients, want_gradients, (p, x), strict=True):
        assert gradient.dtype == vectors.dtype
        assert_near(gradient, truth, (terms.shape[1] + 1) ** 0.5 / lengths(vectors))


@st.composite
def discrepancies(draw):
    levels, instances = draw(LEVELS), draw(ROWS)
    sizes = draw(st.lists(st.sampled_from((0, 1, 2, 10, 40)), max_size=5))
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    count, channels = int(offsets[-1]), (draw(CHANNELS), draw(CHANNELS))
    embeddings = [draw(rows((levels, instances, c))) for c in channels]
    prototypes = [draw(rows((levels, count, c))) for c in channels]
    generator = torch.Generator().manual_seed(draw(SEEDS))
    # One class too many on either side: padding, and a label without an entry.
    labels = torch.randint(-2, len(sizes) + 1, (instances,), generator=generator)
    return embeddings, prototypes, labels, offsets, torch.randn(levels, generator=generator)


@given(discrepancies())
@SETTINGS
def test_pairwise_discrepancy(case):
    embeddings, prototypes, labels, offsets, weight = case
    omega_weight = torch.zeros(len(weight), len(labels))  # omega carries no gradient

    def discrepancy(student, teacher):
        return ops.pairwise_discrepancy(student, teacher, *prototypes, labels, offsets)

    (got, gradients), (want, want_gradients) = against_float64(discrepancy, embeddings, (weight, omega_weight))
    for a, b in zip(got, want, strict=True):
        assert_near(a, b)
    for vectors, gradient, truth in zip(embeddings, gradients, want_gradients, strict=True):
        assert gradient.dtype == vectors.dtype
        assert_near(gradient, truth, 1 / lengths(vectors))


INFINITY = float("inf")
COORDINATES = st.one_of(
    st.floats(-30.0, 120.0, width=32),
    st.sampled_from((0.0, -0.0, 4.0, 16.0, 63.0, 1e9, 3e38, -3e38, INFINITY, -INFINITY, NAN)),
)


@st.composite
def imitations(draw):
    levels, images, channels = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(CHANNELS)
    sides = st.sampled_from((1, 2, 7, 33))
    sizes = [(draw(sides), draw(sides)) for _ in range(levels)]
    generator = torch.Generator().manual_seed(draw(SEEDS))
    pyramids = []
    for _ in range(2):
        dtype, layout = draw(DTYPES), draw(st.sampled_from(LAYOUTS))
        maps = [torch.randn(images, channels, *size, generator=generator).to(dtype) for size in sizes]
        pyramids.append([laid_out(m, layout) for m in maps])
    count = draw(st.sampled_from((1, 2, 9))) if images and draw(st.booleans()) else 0
    boxes = torch.tensor(draw(st.lists(st.lists(COORDINATES, min_size=4, max_size=4), min_size=count, max_size=count)))
    index = torch.randint(0, max(images, 1), (count,), generator=generator)
    omega = torch.rand(levels, count, generator=generator) * 1.4 - 0.4
    omega[torch.rand(levels, count, generator=generator) < 0.1] = NAN
    return *pyramids, boxes.reshape(count, 4), index, omega, draw(st.sampled_from(("max", "last")))


@given(imitations())
@SETTINGS
def test_masked_imitation(case):
    student, teacher, boxes, index, omega, overlap = case
    levels = len(student)
    weights = [torch.arange(1.0, levels + 1) * factor for factor in (1.0, -0.5, 0.0, 0.0)]

    def sums(*maps):
        return ops.masked_imitation(
            maps[:levels], maps[levels:], boxes, index, omega, STRIDES[:levels], overlap=overlap, base_size=12.0
        )

    maps = [*student, *teacher]
    (got, gradients), (want, want_gradients) = against_float64(sums, maps, weights)
    squares = [(s.double() - t.double()).square().sum().item() for s, t in zip(student, teacher, strict=True)]
    for a, b in zip(got, want, strict=True):
        for value, truth, square, m in zip(a, b, squares, student, strict=True):
            assert_near(value, truth, square + m.numel() + 1)
    for m, gradient, truth in zip(maps, gradients, want_gradients, strict=True):
        assert gradient.dtype == m.dtype
        assert_near(gradient, truth, levels)
