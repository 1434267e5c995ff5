import pytest
import torch
from kernel_cases import LAYOUTS, NAN, ODD_BOXES, ODD_IMAGES, STRIDES, agree, boxes_of, laid_out, leaf, pyramid

from gkd_fast import ops
from gkd_fast.ops.reference.masked_imitation import imitation_level

DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float16),
]
SIZES = ((8, 12), (3, 5), (1, 1))


def maps(dtypes=DTYPES[0], layouts=("contiguous", "contiguous"), **options):
    """Student and teacher maps that collect gradients."""
    return [
        [laid_out(f, layout).detach().requires_grad_() for f in pyramid(dtype=dtype, seed=seed, **options)]
        for seed, (dtype, layout) in enumerate(zip(dtypes, layouts, strict=True))
    ]


def imitation(**options):
    """The operator as a function of maps, boxes, images and weights; omega may be negative."""

    def sums(student, teacher, boxes, index, omega):
        omega, boxes = omega.detach(), boxes.float()
        return ops.masked_imitation(student, teacher, boxes, index, omega, STRIDES, base_size=12.0, **options)

    return sums


def weights(count):
    return torch.rand(3, count, generator=torch.Generator().manual_seed(3)) * 1.4 - 0.4


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("channels", [16, 3])
@pytest.mark.parametrize("student", LAYOUTS)
@pytest.mark.parametrize("teacher", LAYOUTS)
def test_every_layout(dtypes, channels, student, teacher):
    boxes, index = boxes_of(9)
    agree(imitation(), *maps(dtypes, (student, teacher), channels=channels, sizes=SIZES), boxes, index, weights(9))


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_boxes_paint_every_level(overlap):
    boxes, index = boxes_of(9)
    boxes = torch.cat([boxes, torch.zeros(1, 4)])
    index = torch.cat([index, index[:1]])
    agree(imitation(overlap=overlap, levels="every"), *maps(sizes=SIZES), boxes, index, weights(10))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trust_weighs_the_cells_outside_of_boxes(layout):
    boxes, index = boxes_of(9)
    generator = torch.Generator().manual_seed(7)
    trust = [torch.rand(2, *size, generator=generator) for size in SIZES]
    both = maps(layouts=(layout, layout), channels=16, sizes=SIZES)
    agree(imitation(trust=trust), *both, boxes, index, weights(9))


@pytest.mark.parametrize("overlap", ["max", "last"])
@pytest.mark.parametrize("boxes", ["many", "odd", "small"])
def test_painting(overlap, boxes):
    if boxes == "odd":
        b, index = ODD_BOXES, ODD_IMAGES
    else:
        b, index = boxes_of(150, extent=(68.0, 52.0) if boxes == "many" else (20.0, 20.0))
    agree(imitation(overlap=overlap), *maps(), b, index, weights(len(b)))


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_small_boxes_meet_areas_in_order(overlap):
    small, area = [1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]
    student, teacher = [leaf(torch.ones(1, 1, 2, 2))], [torch.zeros(1, 1, 2, 2)]
    with ops.use_backend("triton"):
        sums = ops.masked_imitation(
            student,
            teacher,
            torch.tensor([small, area, small, small]),
            torch.zeros(4, dtype=torch.int64),
            torch.tensor([[0.9, 0.2, 0.5, 0.4]]),
            [4],
            overlap=overlap,
        )
    torch.testing.assert_close(sums.foreground, torch.tensor([0.5 if overlap == "last" else 0.9]))
    assert sums.background_cells == 3


def test_many_channels_and_cells_in_several_programs(checker):
    boxes, index = boxes_of(5)
    student, teacher = maps(channels=70, sizes=((20, 30), (9, 7), (2, 2)))
    agree(imitation(), student, teacher, boxes, index, weights(5))
    one_each = ["paint_kernel", "imitation_kernel", "imitation_sums_kernel", "imitation_backward_kernel"]
    assert checker.launches == one_each


def test_more_levels_than_a_launch_has(checker):
    boxes, index = boxes_of(5)
    student, teacher = maps(channels=5, sizes=((6, 5), (2, 3), (4, 4), (3, 1), (1, 1), (2, 2), (5, 4)))
    omega = torch.rand(7, 5, generator=torch.Generator().manual_seed(3)) * 1.4 - 0.4

    def sums(student, teacher, omega):
        return ops.masked_imitation(student, teacher, boxes, index, omega, [4] * 7, base_size=3.0, levels="own")

    agree(sums, student, teacher, omega)
    assert checker.launches.count("imitation_backward_kernel") == 2


def test_levels_of_other_layouts_have_a_launch_of_their_own(checker):
    boxes, index = boxes_of(5)
    student, teacher = maps(channels=8, sizes=SIZES)
    student[1] = laid_out(student[1], "channels_last").detach().requires_grad_()
    agree(imitation(), student, teacher, boxes, index, weights(5))
    assert checker.launches.count("imitation_kernel") == 3


def test_channels_last_over_several_tiles():
    boxes, index = boxes_of(5)
    agree(imitation(), *maps(layouts=("channels_last",) * 2, channels=136, sizes=SIZES), boxes, index, weights(5))


@pytest.mark.parametrize("what", ["boxes", "weight"])
def test_nan_paints_nothing(what):
    boxes, index = boxes_of(4)
    omega = weights(4).abs()
    (boxes if what == "boxes" else omega)[:, 0] = NAN
    sums = agree(imitation(), *maps(), boxes, index, omega)
    assert all(s.isfinite().all() for s in sums)


@pytest.mark.parametrize("change", [{"images": 0}, {"channels": 0}, {}])
def test_empty(change):
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(3, 0)
    agree(imitation(), *maps(**change), *none)


def test_a_box_of_no_image_paints_nothing():
    student, teacher = pyramid(), pyramid(seed=1)
    boxes, _ = boxes_of(2)
    with ops.use_backend("triton"):
        sums = imitation()(student, teacher, boxes, torch.tensor([-1, 2]), torch.ones(3, 2))
    assert (sums.foreground_weight == 0).all()


def test_views_of_larger_maps():
    """Rows apart from each other, every second channel, images in another order, a start that is not aligned."""
    boxes, index = boxes_of(6)
    wide = [torch.randn(2, 8, h, w + 3) for h, w in SIZES]
    cropped = [f[..., 3:].requires_grad_() for f in wide]
    every_second = [torch.randn(2, 16, *s)[:, ::2].requires_grad_() for s in SIZES]
    agree(imitation(), cropped, every_second, boxes, index, weights(6))
    across = [torch.randn(2, h, 8, w).permute(0, 2, 1, 3).requires_grad_() for h, w in SIZES]
    shifted = [torch.randn(2 * 8 * h * w + 1)[1:].view(2, 8, h, w).requires_grad_() for h, w in SIZES]
    agree(imitation(), across, shifted, boxes, index, weights(6))


def test_gradients_only_where_they_are_wanted(checker):
    student, teacher = maps()
    boxes, index = boxes_of(6)
    student[1:], teacher[:2] = [f.detach() for f in student[1:]], [f.detach() for f in teacher[:2]]
    agree(imitation(), student, teacher, boxes, index, weights(6))
    assert checker.launches.count("imitation_backward_kernel") == 1


def test_gradients_have_the_layout_of_their_maps():
    student, teacher = maps(layouts=("channels_last", "contiguous"), channels=8, sizes=SIZES)
    boxes, index = boxes_of(3)
    with ops.use_backend("triton"):
        sums = imitation()(student, teacher, boxes, index, torch.ones(3, 3))
        gradients = torch.autograd.grad(sums.background.sum() + sums.foreground.sum(), student + teacher)
    assert [g.stride() for g in gradients] == [f.stride() for f in student + teacher]


def test_levels_change_where_the_reference_changes_them():
    """Boxes whose size is the base size times a power of two, and the floats next to it."""
    sides = []
    for power in range(5):
        side = torch.tensor(12.0 * 2**power - 1)
        for _ in range(2):
            side = side.nextafter(torch.tensor(0.0))
        for _ in range(5):
            sides.append(side.item())
            side = side.nextafter(torch.tensor(1e9))
    sides = torch.tensor(sides)
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    level = imitation_level(boxes, 6, 12.0)
    assert set(level.tolist()) == set(range(5))
    maps = [torch.zeros(len(boxes), 1, 1, 1) for _ in range(6)]
    omega = torch.rand(6, len(boxes), generator=torch.Generator().manual_seed(0)).round(decimals=3) + 0.001
    index = torch.arange(len(boxes))
    with ops.use_backend("triton"):
        sums = ops.masked_imitation(maps, maps, boxes, index, omega, [1e9] * 6, base_size=12.0)
    want = torch.stack([omega[k, level == k].sum() for k in range(6)])
    torch.testing.assert_close(sums.foreground_weight, want, rtol=1e-5, atol=1e-5)
