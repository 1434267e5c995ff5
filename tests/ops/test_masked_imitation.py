import math

import pytest
import torch
from ops_cases import LAYOUTS, ODD_BOXES, ODD_IMAGES, STRIDES, boxes_of, laid_out, leaf, pyramid

from gkd_fast import ops

F64 = torch.float64
HALF_AND_FLOAT = (torch.float32, torch.bfloat16, torch.float16)
BASE = 12.0  # spreads the small test images over the levels


def paint(boxes, image_index, omega, strides, shapes, images, overlap):
    """Weight maps, box after box, cell after cell."""
    maps = [torch.zeros(images, *shape, dtype=F64) for shape in shapes]
    for i, box in enumerate(boxes.tolist()):
        if any(math.isnan(c) for c in box):
            continue
        width, height = (max(box[k + 2] - box[k] + 1, 0.0) for k in (0, 1))
        level = math.floor(math.log2(math.sqrt(width * height) / BASE + 1e-6))
        level = min(max(level, 0), len(strides) - 1)
        target, weight = maps[level][image_index[i]], omega[level, i].item()
        rows, columns = target.shape
        x1, y1, x2, y2 = (int(max(c, 0.0) / strides[level]) for c in box)
        area = [(y, x) for y in range(y1, min(y2, rows)) for x in range(x1, min(x2, columns))]
        for cell in area:
            target[cell] = max(target[cell].item(), weight) if overlap == "max" else weight
        if not area:
            cell = min(y1, rows - 1), min(x1, columns - 1)
            target[cell] = max(target[cell].item(), weight)
    return maps


def by_loops(student, teacher, boxes, image_index, omega, strides, overlap, trust=None):
    shapes = [f.shape[2:] for f in student]
    sums = []
    weights = paint(boxes, image_index, omega, strides, shapes, student[0].shape[0], overlap)
    for s, t, weight, r in zip(student, teacher, weights, trust or [1.0] * len(student), strict=True):
        square = (s.double() - t.double()).square().sum(1)
        outside = (weight <= 0).double()
        sums.append(torch.stack([(weight * square).sum(), (outside * r * square).sum(), weight.sum(), outside.sum()]))
    return torch.stack(sums, dim=1)


@pytest.mark.parametrize("overlap", ["max", "last"])
@pytest.mark.parametrize("boxes", ["random", "odd", "small"])
def test_equals_loops(backend, overlap, boxes):
    if boxes == "odd":
        b, index = ODD_BOXES[:-2], ODD_IMAGES[:-2]  # the loops take too long over the huge one
        b = torch.cat([b, ODD_BOXES[-1:]])
        index = torch.cat([index, ODD_IMAGES[-1:]])
    else:
        b, index = boxes_of(60, extent=(68.0, 52.0) if boxes == "random" else (20.0, 20.0))
    student, teacher = pyramid(dtype=F64), pyramid(dtype=F64, seed=5, channels_last=True)
    omega = torch.rand(3, len(b), dtype=F64, generator=torch.Generator().manual_seed(3)) * 1.4 - 0.4
    got = ops.masked_imitation(student, teacher, b, index, omega, STRIDES, overlap=overlap, base_size=BASE)
    want = by_loops(student, teacher, b, index, omega, STRIDES, overlap)
    torch.testing.assert_close(torch.stack(got), want)


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_every_level_alone_has_the_sums_of_all(backend, overlap):
    b, index = boxes_of(20, extent=(68.0, 52.0))
    student, teacher = pyramid(), pyramid(seed=5)
    omega = torch.rand(3, len(b), generator=torch.Generator().manual_seed(3)) * 1.4 - 0.4
    got = ops.masked_imitation(student, teacher, b, index, omega, STRIDES, overlap=overlap, levels="every")
    alone = [
        ops.masked_imitation([s], [t], b, index, omega[level, None], [STRIDES[level]], overlap=overlap)
        for level, (s, t) in enumerate(zip(student, teacher, strict=True))
    ]
    for name in got._fields:
        torch.testing.assert_close(getattr(got, name), torch.cat([getattr(own, name) for own in alone]))
    assert (got.foreground_weight != 0).all()


def trust_of(maps, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(m.shape[0], *m.shape[2:], generator=generator).to(dtype) for m in maps]


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_trust_weighs_the_cells_outside_of_boxes(backend, overlap):
    b, index = boxes_of(20, extent=(68.0, 52.0))
    student, teacher = pyramid(dtype=F64), pyramid(dtype=F64, seed=5, channels_last=True)
    omega = torch.rand(3, len(b), dtype=F64, generator=torch.Generator().manual_seed(3)) * 1.4 - 0.4
    trust = trust_of(student)
    options = {"overlap": overlap, "base_size": BASE, "trust": trust}
    got = ops.masked_imitation(student, teacher, b, index, omega, STRIDES, **options)
    want = by_loops(student, teacher, b, index, omega, STRIDES, overlap, trust)
    torch.testing.assert_close(torch.stack(got), want)
    assert (got.background > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT)
def test_kernel_equals_reference_with_trust(dtype, layout):
    student, teacher = (
        [leaf(laid_out(f, layout)) for f in pyramid(dtype=dtype, channels=33, sizes=SIZES, seed=seed)]
        for seed in (0, 5)
    )
    trust = trust_of(student, dtype)
    flat = torch.cat([r.flatten() for r in trust])
    got = run(student, teacher, "cpu", student + teacher, trust=flat)
    want = run(student, teacher, "reference", student + teacher, trust=trust)
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own, other, rtol=2e-5 if own.dtype == torch.float32 else 1e-2, atol=1e-2)


def test_gradcheck_with_trust(backend):
    sizes = ((5, 6), (3, 2), (1, 1))
    maps = [leaf(f) for seed in (0, 1) for f in pyramid(dtype=F64, channels=2, sizes=sizes, seed=seed)]
    boxes, index = boxes_of(3, extent=(12.0, 10.0))
    trust = [leaf(r) for r in trust_of(maps[:3], F64)]

    def sums(*m):
        out = ops.masked_imitation(m[:3], m[3:], boxes, index, torch.ones(3, 3), STRIDES, trust=trust)
        return out.foreground, out.background

    assert torch.autograd.gradcheck(sums, maps)
    torch.stack([part.sum() for part in sums(*maps)]).sum().backward()
    assert all(r.grad is None for r in trust)


def test_small_boxes_meet_areas_in_order(backend):
    """A small box keeps the larger weight, a later area overwrites it, a later small box meets the area."""
    student, teacher = [torch.ones(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)]
    small, area = [1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]
    boxes = torch.tensor([small, area, small, small])
    omega = torch.tensor([[0.9, 0.2, 0.5, 0.4]])
    index = torch.zeros(4, dtype=torch.int64)
    for overlap, weight in (("last", 0.5), ("max", 0.9)):
        sums = ops.masked_imitation(student, teacher, boxes, index, omega, [4], overlap=overlap)
        torch.testing.assert_close(sums.foreground, torch.tensor([weight]))
        torch.testing.assert_close(sums.background_cells, torch.tensor([3.0]))


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_gradcheck(backend, overlap):
    sizes = ((5, 6), (3, 2), (1, 1))
    maps = [leaf(f) for seed in (0, 1) for f in pyramid(dtype=F64, channels=2, sizes=sizes, seed=seed)]
    boxes, index = boxes_of(6, extent=(24.0, 20.0))
    omega = torch.rand(3, 6, dtype=F64)

    def sums(*m):
        out = ops.masked_imitation(m[:3], m[3:], boxes, index, omega, STRIDES, overlap=overlap, base_size=6.0)
        return out.foreground, out.background

    assert torch.autograd.gradcheck(sums, maps)


def test_mixed_dtypes_and_no_boxes(backend):
    student, teacher = [leaf(f) for f in pyramid(dtype=torch.bfloat16)], pyramid(seed=5)
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(3, 0)
    sums = ops.masked_imitation(student, teacher, *none, STRIDES)
    want = torch.stack([(s.float() - t).square().sum() for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(sums.background, want)
    assert sums.foreground.dtype == torch.float32
    assert (sums.foreground == 0).all()
    sums.background.sum().backward()
    assert student[0].grad.dtype == torch.bfloat16


def test_nan_weight_paints_nothing(backend):
    student, teacher = pyramid(), pyramid(seed=5)
    boxes, index = boxes_of(3)
    sums = ops.masked_imitation(student, teacher, boxes, index, torch.full((3, 3), float("nan")), STRIDES)
    assert (sums.foreground_weight == 0).all()
    assert sums.background.isfinite().all()


SIZES = ((63, 100), (25, 33), (1, 1))


def crowd():
    """Boxes and weights [3,60] for maps of SIZES: overlapping, some weights negative, all levels in use."""
    boxes, index = boxes_of(60, extent=(400.0, 252.0))
    return boxes, index, torch.rand(3, 60, generator=torch.Generator().manual_seed(3)) * 1.4 - 0.4


def run(student, teacher, backend, leaves, **options):
    """Sums, and the gradients of a mixture of them."""
    with ops.use_backend(backend):
        sums = ops.masked_imitation(student, teacher, *crowd(), STRIDES, base_size=30.0, **options)
        mixture = sums.foreground @ sums.foreground.new_tensor([1.0, 2.0, 3.0]) - 0.5 * sums.background.sum()
        return [*sums, *torch.autograd.grad(mixture, leaves)]


@pytest.mark.parametrize(("channels", "sizes"), [(1, SIZES), (33, SIZES), (1000, ((7, 9), (1, 63), (1, 1)))])
@pytest.mark.parametrize("student_layout", LAYOUTS)
@pytest.mark.parametrize("teacher_layout", LAYOUTS)
def test_kernel_equals_reference(channels, sizes, student_layout, teacher_layout):
    student, teacher = (
        [laid_out(f, layout).requires_grad_() for f in pyramid(channels=channels, sizes=sizes, dtype=F64, seed=seed)]
        for seed, layout in enumerate((student_layout, teacher_layout))
    )
    got, want = (run(student, teacher, backend, student + teacher) for backend in ("cpu", "reference"))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    if "strided" not in (student_layout, teacher_layout):
        assert [g.stride() for g in got[4:]] == [f.stride() for f in student + teacher]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtypes", [(d, e) for d in HALF_AND_FLOAT for e in (torch.float32, d)])
def test_error_is_within_the_reference_s(layout, dtypes):
    student, teacher = (
        [laid_out(f, layout) for f in pyramid(channels=65, sizes=SIZES, dtype=dtype, seed=seed)]
        for seed, dtype in enumerate(dtypes)
    )

    def results(backend, *kinds):
        s, t = ([leaf(f.to(kind)) for f in maps] for maps, kind in zip((student, teacher), kinds, strict=True))
        return run(s, t, backend, s + t)

    truth = results("reference", F64, F64)
    errors = [
        [(got.double() - want).abs().max().item() for got, want in zip(results(backend, *dtypes), truth, strict=True)]
        for backend in ("cpu", "reference")
    ]
    for kernel, reference, want in zip(*errors, truth, strict=True):
        # A sum that the reference happens to hit may be rounded once.
        assert kernel <= max(reference, torch.finfo(torch.float32).eps * want.abs().max().item())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(layout, dtype):
    student, teacher = (
        [laid_out(f, layout).requires_grad_() for f in pyramid(channels=64, sizes=SIZES, dtype=dtype, seed=seed)]
        for seed in (0, 1)
    )
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(student, teacher, "cpu", student + teacher))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_only_where_they_are_wanted(backend):
    student, teacher = pyramid(), pyramid(seed=5)
    maps = [student[0], teacher[2]]
    everything = [leaf(f) for f in student + teacher]
    wanted = [leaf(f) for f in maps]
    boxes, index = boxes_of(6)

    def gradients(student, teacher, leaves):
        sums = ops.masked_imitation(student, teacher, boxes, index, torch.ones(3, 6), STRIDES, base_size=BASE)
        return torch.autograd.grad(sums.background.sum() + sums.foreground.sum(), leaves)

    some = gradients([wanted[0], *student[1:]], [*teacher[:2], wanted[1]], wanted)
    every = gradients(everything[:3], everything[3:], everything)
    assert torch.equal(some[0], every[0])
    assert torch.equal(some[1], every[5])


@pytest.mark.parametrize("power", range(6))
def test_levels_change_where_the_reference_changes_them(power):
    """Boxes whose size is the base size times a power of two, and the floats next to it."""
    side = torch.tensor(12.0 * 2**power - 1)
    sides = torch.stack([torch.nextafter(side, side.new_tensor(end)) for end in (0.0, 1e9)] + [side])
    boxes = torch.zeros(3, 4)
    boxes[:, 2:] = sides[:, None]
    maps = [torch.ones(1, 1, 200, 200) for _ in range(5)]
    arguments = [torch.zeros_like(m) for m in maps], boxes, torch.zeros(3, dtype=torch.int64), torch.rand(5, 3)
    got, want = (
        _with_backend(name, lambda: ops.masked_imitation(maps, *arguments, [4] * 5, base_size=12.0))
        for name in ("cpu", "reference")
    )
    torch.testing.assert_close(got.foreground_weight, want.foreground_weight)


def _with_backend(name, function):
    with ops.use_backend(name):
        return function()


@pytest.mark.parametrize("image", [-1, 2])
def test_image_that_does_not_exist(image):
    with (
        ops.use_backend("cpu"),
        pytest.raises(RuntimeError, match=rf"image_index: expected values in \[0,2\), got {image}"),
    ):
        ops.masked_imitation(pyramid(), pyramid(), torch.ones(1, 4), torch.tensor([image]), torch.ones(3, 1), STRIDES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_opcheck(layout, dtype):
    raw = torch.ops.gkd_fast
    student = [laid_out(f, layout) for f in pyramid(dtype=dtype)]
    teacher = pyramid(seed=5)
    boxes, index = boxes_of(6)
    trust = torch.cat([r.flatten() for r in trust_of(student, dtype)])
    arguments = student, teacher, boxes, index, torch.rand(3, 6), trust, [4.0, 8.0, 16.0], False, BASE
    torch.library.opcheck(raw.masked_imitation.default, arguments)
    squares, _, weights = raw.masked_imitation(*arguments)
    need = [True, False, True, True, True, False]
    torch.library.opcheck(raw.masked_imitation_backward.default, (squares, student, teacher, weights, need))


def test_bad_arguments():
    student = pyramid()
    boxes, index = boxes_of(2)
    with pytest.raises(ValueError, match=r"teacher\[0\]: expected shape \(2, 3, 13, 17\)"):
        ops.masked_imitation(student, pyramid(channels=4), boxes, index, torch.ones(3, 2), STRIDES)
    with pytest.raises(ValueError, match="omega: expected B = 2, got 1"):
        ops.masked_imitation(student, student, boxes, index, torch.ones(3, 1), STRIDES)
    trust = [torch.ones(2, 13, 17), torch.ones(2, 7, 8), torch.ones(2, 3, 4)]
    with pytest.raises(ValueError, match="trust: expected cells = 570, got 569"):
        ops.masked_imitation(student, student, boxes, index, torch.ones(3, 2), STRIDES, trust=torch.ones(569))
    with pytest.raises(ValueError, match=r"trust\[1\]: expected shape \(2, 7, 9\) of the student's cells"):
        ops.masked_imitation(student, student, boxes, index, torch.ones(3, 2), STRIDES, trust=trust)
    with pytest.raises(ValueError, match="trust: expected levels = 3, got 1"):
        ops.masked_imitation(student, student, boxes, index, torch.ones(3, 2), STRIDES, trust=[torch.ones(2, 13, 17)])
    with pytest.raises(ValueError, match="overlap: expected one of max, last, got 'min'"):
        ops.masked_imitation(student, student, boxes, index, torch.ones(3, 2), STRIDES, overlap="min")
