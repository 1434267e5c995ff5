"""The compiled RoIAlign against the reference, over layouts, dtypes and shapes that take different paths through it."""

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_cases import ODD_BOXES, ODD_IMAGES, STRIDES, boxes_of, leaf, pyramid

from gkd_fast import ops

CANONICAL = {"canonical_size": 14, "canonical_level": 3}  # spreads the small test images over the levels
TALL = ((150, 300), (75, 150), (37, 75))  # more rows than a task takes at a time, and boxes wider than two vectors
NARROW = ((40, 1), (20, 3), (1, 1))


def run(backend, features, boxes, index, **options):
    """Pooled features and the gradients of all maps for a fixed random gradient."""
    with ops.use_backend(backend):
        pooled = ops.multiscale_roi_align(features, boxes, index, STRIDES[: len(features)], **options)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return pooled, *torch.autograd.grad(pooled, features, weight.to(pooled.dtype))


def assert_equals_reference(features, boxes, index, **options):
    kernel, reference = (run(backend, features, boxes, index, **options) for backend in ("cpu", "reference"))
    for got, want in zip(kernel, reference, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def strided(feature, layout):
    """The same values with other strides."""
    n, c, h, w = feature.shape
    if layout == "view":  # rows and channels out of a larger map
        wide = torch.full((n, c + 2, h + 1, w + 3), float("nan"), dtype=feature.dtype)
        wide[:, 1:-1, 1:, 2:-1] = feature
        return wide[:, 1:-1, 1:, 2:-1]
    if layout == "scattered":  # neither cells nor channels adjacent
        return feature.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    return feature.contiguous(memory_format=layout)


LAYOUTS = {
    "planar": [torch.contiguous_format] * 3,
    "interleaved": [torch.channels_last] * 3,
    "mixed": [torch.channels_last, torch.contiguous_format, torch.channels_last],
    "view": ["view"] * 3,
    "scattered": ["scattered"] * 3,
}


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize(("channels", "sizes"), [(1, TALL), (35, TALL[1:]), (70, NARROW)])
@pytest.mark.parametrize(("ratio", "aligned"), [(0, False), (2, True)])
def test_equals_reference(layouts, channels, sizes, ratio, aligned):
    features = pyramid(channels=channels, sizes=sizes, dtype=torch.float64)
    features = [leaf(f) for f in features]
    inputs = [strided(f, layout) for f, layout in zip(features, LAYOUTS[layouts][: len(features)], strict=True)]
    boxes, index = boxes_of(50, extent=(4.0 * sizes[0][1], 4.0 * sizes[0][0]))
    options = {"output_size": 7, "sampling_ratio": ratio, "aligned": aligned, "canonical_size": 112}
    results = []
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            pooled = ops.multiscale_roi_align(inputs, boxes, index, STRIDES[: len(inputs)], **options)
        results.append((pooled, *torch.autograd.grad(pooled.square().sum(), features, retain_graph=True)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [1, (1, 9), (14, 3), 17])
@pytest.mark.parametrize("ratio", [1, 5])
def test_output_sizes(size, ratio):
    features = [leaf(f) for f in pyramid(dtype=torch.float64, sizes=((40, 60), (20, 30)))]
    boxes, index = boxes_of(20, extent=(240.0, 160.0))
    assert_equals_reference(features, boxes, index, output_size=size, sampling_ratio=ratio)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_odd_boxes(aligned, levels, channels_last):
    features = [leaf(f) for f in pyramid(dtype=torch.float64, channels_last=channels_last)[:levels]]
    assert_equals_reference(features, ODD_BOXES, ODD_IMAGES, output_size=3, aligned=aligned, **CANONICAL)


@pytest.mark.parametrize("channels_last", [False, True])
def test_inverted_box_across_tasks(channels_last):
    features = [leaf(f) for f in pyramid(channels=8, sizes=TALL[:1], dtype=torch.float64, channels_last=channels_last)]
    boxes = torch.tensor([[300.0, 590.0, 200.0, 10.0], [20.0, 400.0, 900.0, 130.0]])
    assert_equals_reference(features, boxes, torch.tensor([0, 1]), output_size=7, aligned=True)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(ratio):
    sizes = ((5, 6), (3, 2), (1, 1))
    features = [
        leaf(f) for pair in zip(pyramid(channels=2, sizes=sizes, dtype=torch.float64), strict=True) for f in pair
    ]
    features[1] = leaf(features[1].detach().contiguous(memory_format=torch.channels_last))
    boxes, index = boxes_of(6, extent=(24.0, 20.0))

    def pool(*maps):
        return ops.multiscale_roi_align(maps, boxes, index, STRIDES, output_size=2, sampling_ratio=ratio, **CANONICAL)

    with ops.use_backend("cpu"):
        assert torch.autograd.gradcheck(pool, features)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_the_reference_s(dtype, channels_last):
    features = [leaf(f) for f in pyramid(channels=40, dtype=dtype, channels_last=channels_last, sizes=TALL[1:])]
    boxes, index = boxes_of(200, extent=(600.0, 300.0))
    truth = run("reference", [leaf(f.double()) for f in features], boxes, index, output_size=7)
    results = [run(backend, features, boxes, index, output_size=7) for backend in ("cpu", "reference")]
    for kernel, reference, exact in zip(*results, truth, strict=True):
        assert kernel.dtype == dtype
        errors = [(r.double() - exact).abs() for r in (kernel, reference)]
        assert errors[0].square().mean() <= 1.002 * errors[1].square().mean()


def test_gradients_in_the_layout_of_the_maps():
    planar = pyramid(channels=5, dtype=torch.bfloat16)
    maps = [planar[0], planar[1].contiguous(memory_format=torch.channels_last), planar[2]]
    pooled, *gradients = run("cpu", [leaf(m) for m in maps], *boxes_of(20), output_size=3, **CANONICAL)
    assert pooled.is_contiguous()
    assert [g.stride() for g in gradients] == [m.stride() for m in maps]
    assert {g.dtype for g in gradients} == {torch.bfloat16}


@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_for_any_number_of_threads(channels_last):
    features = [leaf(f) for f in pyramid(channels=70, sizes=TALL, channels_last=channels_last)]
    boxes, index = boxes_of(200, extent=(1200.0, 600.0))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run("cpu", features, boxes, index, output_size=7))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("size", [7, 8, 9, 12])
def test_samples_on_the_border_count_as_torchvision_s(size):
    """Whole boxes put samples exactly onto -1 and onto the size of the map, where one rounding decides."""
    feature = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    starts, lengths = torch.meshgrid(torch.arange(-6, 8), torch.arange(1, 30), indexing="ij")
    start, end = starts.flatten().float(), (starts + lengths).flatten().float()
    boxes = torch.stack([start, start, end, end], dim=1)
    index = torch.zeros(len(boxes), dtype=torch.int64)
    for ratio in (0, 1, 2, 3):
        want = torchvision.ops.roi_align(feature, [boxes], 7, 1.0, ratio)
        with ops.use_backend("cpu"):
            got = ops.multiscale_roi_align([feature], boxes, index, [1], output_size=7, sampling_ratio=ratio)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_levels_are_torchvision_s():
    sizes = torch.cat([torch.arange(1, 1200).float(), 56 * 2 ** torch.linspace(-1, 5, 600)])
    boxes = torch.stack([torch.zeros_like(sizes), torch.zeros_like(sizes), sizes, sizes], dim=1)
    maps = {str(i): torch.full((1, 1, 1024 >> i, 1024 >> i), float(i)) for i in range(5)}
    names = list(maps)
    want = torchvision.ops.MultiScaleRoIAlign(names, 1, 1)(maps, [boxes], [(4096, 4096)])
    with ops.use_backend("cpu"):
        got = ops.MultiScaleRoIAlign(names, 1, 1)(maps, [boxes], [(4096, 4096)])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert set(got.round().flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_huge_boxes_with_adaptive_sampling():
    """As many samples as the box has cells: those outside of the map are not visited."""
    boxes = torch.tensor([[-1e6, -1e6, 1e6, 1e6], [0.0, 0.0, 1e9, 8.0], [-1e30, 0.0, 1e30, 9.0]])
    boxes = torch.cat([boxes, torch.full((1, 4), float("inf"))])
    feature = leaf(torch.ones(1, 1, 8, 8))
    with ops.use_backend("cpu"):
        out = ops.multiscale_roi_align(
            [feature], boxes, torch.zeros(4, dtype=torch.int64), [1], output_size=3, sampling_ratio=0
        )
    out.sum().backward()
    assert out.isfinite().all()
    # 9 rows of samples of all 666667 x 666667 of the middle bin: those from -1 to 8, both ways.
    torch.testing.assert_close(out[0, 0, 1, 1].item(), (9 / (2e6 / 3)) ** 2, rtol=0.2, atol=0)
    assert (out[2:] == 0).all()


@pytest.mark.parametrize(("images", "channels", "count"), [(2, 3, 0), (0, 3, 0), (2, 0, 4)])
def test_empty(images, channels, count):
    features = [leaf(f) for f in pyramid(images=images, channels=channels)]
    boxes, index = boxes_of(count)
    with ops.use_backend("cpu"):
        out = ops.multiscale_roi_align(features, boxes, index, STRIDES, output_size=7)
    assert out.shape == (count, channels, 7, 7)
    out.sum().backward()
    assert all((f.grad == 0).all() for f in features)


@pytest.mark.parametrize("channels_last", [False, True])
def test_cells_that_a_box_does_not_touch_have_no_effect(channels_last):
    boxes = torch.tensor([[90.0, 40.0, 130.0, 90.0], [2.0, 2.0, 9.0, 9.0], [210.0, 150.0, 238.0, 158.0]])
    feature = leaf(pyramid(channels=40, images=1, sizes=((40, 60),), dtype=torch.float64)[0])
    index = torch.zeros(len(boxes), dtype=torch.int64)
    want, gradient = run("reference", [feature], boxes, index, output_size=7)
    untouched = (gradient == 0).all(dim=1, keepdim=True)
    spoilt = feature.detach().masked_fill(untouched, float("nan"))
    spoilt = leaf(spoilt.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format))
    got, got_gradient = run("cpu", [spoilt], boxes, index, output_size=7)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_gradient, gradient)


def test_level_without_boxes_has_zero_gradient():
    features = [leaf(f) for f in pyramid()]
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    _, *gradients = run("cpu", features, boxes, torch.tensor([1]), output_size=2)
    assert (gradients[0][0] == 0).all()
    assert (gradients[0][1] != 0).any()
    assert (gradients[1] == 0).all()


def test_image_out_of_range():
    boxes, _ = boxes_of(2)
    with (
        ops.use_backend("cpu"),
        pytest.raises(RuntimeError, match=r"image_index: expected values in \[0,2\), got 2"),
    ):
        ops.multiscale_roi_align(pyramid(), boxes, torch.tensor([0, 2]), STRIDES, output_size=2)


def test_strides_grow_too_fast(backend):
    with pytest.raises(ValueError, match="strides: expected each at most twice the one before"):
        ops.multiscale_roi_align(pyramid(), *boxes_of(2), (4, 8, 32), output_size=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    features = pyramid(dtype=dtype, channels=5)
    features[1] = features[1].contiguous(memory_format=torch.channels_last)
    boxes, index = boxes_of(9)
    sampling = [4.0, 8.0, 16.0], 2, False, 14, 3
    raw = torch.ops.gkd_fast
    torch.library.opcheck(raw.multiscale_roi_align.default, (features, boxes, index, [3, 2], *sampling))
    sizes = [f.shape[2] for f in features], [f.shape[3] for f in features]
    gradient = torch.randn(9, 5, 3, 2).to(dtype)
    torch.library.opcheck(
        raw.multiscale_roi_align_backward.default, (gradient, boxes, index, 2, *sizes, [0, 1, 0], *sampling)
    )


sides = st.integers(1, 40)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random(data):
    draw = data.draw
    images, channels, levels = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 3))
    sizes = [(draw(sides), draw(sides)) for _ in range(levels)]
    features = [
        leaf(strided(f, draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))))
        for f in pyramid(images=images, channels=channels, sizes=sizes, dtype=torch.float64)
    ]
    coordinate = st.floats(-60, 260, width=32) | st.integers(-16, 200).map(float)
    boxes = draw(st.lists(st.tuples(*[coordinate] * 4), max_size=8))
    index = draw(st.lists(st.integers(0, images - 1), min_size=len(boxes), max_size=len(boxes)))
    assert_equals_reference(
        features,
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(index, dtype=torch.int64),
        output_size=(draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        sampling_ratio=draw(st.integers(0, 3)),
        aligned=draw(st.booleans()),
        **CANONICAL,
    )
