"""The CUDA kernels' own source, run on the CPU, against the references: values and gradients, several schedules."""

import emulated
import pytest
import torch

from gkd_fast.ops import reference

STRIDES = (4, 8, 16)
# Rows that are whole vectors in several tiles, rows that are not, and a single cell.
SIZES = ((17, 72), (7, 9), (1, 1))
NAN = float("nan")
BOXES = torch.tensor(
    [
        [0.0, 0.0, 288.0, 68.0],  # the whole image
        [0.0, 0.0, 0.0, 0.0],  # a point
        [900.0, 500.0, 999.0, 700.0],  # outside, below and right
        [-50.0, -40.0, -30.0, -20.0],  # outside, above and left
        [40.0, 30.0, 20.0, 10.0],  # inverted
        [140.0, 10.0, 20.0, 30.0],  # inverted in x
        [16.0, 16.0, 32.0, 32.0],  # on the borders of cells
        [-9.0, 5.0, 150.0, 40.0],  # over the left border and over a tile
        [100.0, 20.0, 160.0, 60.0],
        [130.0, 3.0, 280.0, 66.0],
        [3.0, NAN, 20.0, 20.0],
    ]
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of the elements' own rounding, which the reference's results go through as well.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def pyramid(dtype, layout="contiguous", *, channels=5, images=2, sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(images, channels, *size, generator=generator).to(dtype) for size in sizes]
    if layout == "padded_rows":
        return [torch.nn.functional.pad(m, (0, 3))[..., : m.shape[3]] for m in maps]
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return [m.contiguous(memory_format=memory_format) for m in maps]


def images_of(boxes, images=2):
    return torch.arange(len(boxes)) % images


def truth(function, features, gradient):
    """The reference's result and gradients in float32 from the same elements."""
    leaves = [feature.float().requires_grad_() for feature in features]
    result = function(leaves)
    return result.detach(), torch.autograd.grad(result, leaves, gradient.float())


def assert_near(found, expected, dtype):
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def check_mean_pool(features, boxes, image_index, order, negative="clamp"):
    strides, dtype = STRIDES[: len(features)], features[0].dtype
    options = {"negative": negative, "order": order}
    defined = ~boxes.isnan().any(1)
    gradient = torch.randn(len(features), len(boxes), features[0].shape[1])

    def expected(maps):
        return reference.box_mean_pool(maps, boxes, image_index, strides, negative=negative)

    means, gradients = truth(expected, features, gradient * defined[:, None])
    found = emulated.box_mean_pool(features, boxes, image_index, strides, **options)
    assert found[:, ~defined].isnan().all()
    torch.testing.assert_close(found[:, defined], means[:, defined], rtol=2e-5, atol=2e-5)
    found = emulated.box_mean_pool_backward(gradient, features, boxes, image_index, strides, **options)
    assert_near(found, gradients, dtype)


def check_roi_align(features, boxes, image_index, order, output_size=(7, 3), **sampling):
    strides, dtype = STRIDES[: len(features)], features[0].dtype
    sampling = {"sampling_ratio": 2, "aligned": False, "canonical_size": 40, "canonical_level": 3, **sampling}
    gradient = torch.randn(len(boxes), features[0].shape[1], *output_size).to(dtype)

    def expected(maps):
        return reference.multiscale_roi_align(maps, boxes, image_index, strides, output_size=output_size, **sampling)

    pooled, gradients = truth(expected, features, gradient)
    arguments = features, boxes, image_index, strides
    found = emulated.multiscale_roi_align(*arguments, output_size=output_size, order=order, **sampling)
    assert_near([found], [pooled], dtype)
    found = emulated.multiscale_roi_align_backward(gradient, *arguments, order=order, **sampling)
    assert_near(found, gradients, dtype)


@pytest.mark.parametrize("order", emulated.ORDERS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_schedules(order, layout):
    features = pyramid(torch.float32, layout)
    check_mean_pool(features, BOXES, images_of(BOXES), order)
    check_roi_align(features, BOXES, images_of(BOXES), order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "padded_rows"])
def test_dtypes_and_layouts(dtype, layout):
    for channels in (5, 40):  # a part of a block's channels; more than one block's, in whole vectors
        features = pyramid(dtype, layout, channels=channels)
        check_mean_pool(features, BOXES, images_of(BOXES), order=4, negative="mirror")
        check_roi_align(features, BOXES, images_of(BOXES), order=4, sampling_ratio=0)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("levels", [1, 3])
def test_sampling(aligned, sampling_ratio, levels):
    for layout, output_size in (("contiguous", (2, 9)), ("channels_last", (9, 2))):
        features = pyramid(torch.float32, layout)[:levels]
        check_roi_align(
            features, BOXES, images_of(BOXES), 0, output_size, aligned=aligned, sampling_ratio=sampling_ratio
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 63), (63, 1), (1, 1000), (70, 65)])
def test_odd_maps(size):
    for layout in ("contiguous", "channels_last"):
        features = pyramid(torch.float32, layout, sizes=(size,))
        check_mean_pool(features, BOXES, images_of(BOXES), 0)
        check_roi_align(features, BOXES, images_of(BOXES), 0)


def test_more_boxes_than_threads():
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(600, 2, generator=generator) * torch.tensor([280.0, 60.0])
    boxes = torch.cat([corner, corner + torch.rand(600, 2, generator=generator) * 60], 1)
    features = pyramid(torch.float32, sizes=SIZES[:2], images=2)
    check_mean_pool(features, boxes, images_of(boxes), 0)
    check_roi_align(features, boxes, images_of(boxes), 0)


def test_box_on_more_cells_than_shared_memory_holds():
    features = pyramid(torch.float32, sizes=((100, 60),))
    boxes = torch.tensor([[0.0, 0.0, 240.0, 400.0], [8.0, 8.0, 40.0, 40.0]])
    check_roi_align(features, boxes, images_of(boxes), 0)


def test_nothing_to_do():
    features = pyramid(torch.float32)
    none, no_image = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    assert emulated.box_mean_pool(features, none, no_image, STRIDES).shape == (3, 0, 5)
    assert emulated.multiscale_roi_align(features, none, no_image, STRIDES, output_size=(2, 2)).shape == (0, 5, 2, 2)
    for gradients in (
        emulated.box_mean_pool_backward(torch.empty(3, 0, 5), features, none, no_image, STRIDES),
        emulated.multiscale_roi_align_backward(torch.empty(0, 5, 2, 2), features, none, no_image, STRIDES),
    ):
        assert all((gradient == 0).all() for gradient in gradients)
    for empty in ({"channels": 0}, {"images": 0}):
        features = pyramid(torch.float32, **empty)
        means = emulated.box_mean_pool(features, BOXES[:2], torch.zeros(2, dtype=torch.int64), STRIDES)
        assert means.isnan().all()
        emulated.box_mean_pool_backward(means, features, BOXES[:2], torch.zeros(2, dtype=torch.int64), STRIDES)


@pytest.mark.parametrize("image", [-1, 2, 2**40])
def test_images_that_do_not_exist_are_not_read(image):
    features, boxes, index = pyramid(torch.float32), BOXES[:3], torch.tensor([0, image, 1])
    means = emulated.box_mean_pool(features, boxes, index, STRIDES)
    assert means.isnan().all(2).tolist() == [[False, True, False]] * 3
    pooled = emulated.multiscale_roi_align(features, boxes, index, STRIDES, output_size=(2, 2))
    assert (pooled[1] == 0).all()


@pytest.mark.parametrize("order", [1, 5])
def test_same_bits_under_every_schedule(order):
    features, index = pyramid(torch.float32), images_of(BOXES)
    gradient = torch.randn(3, len(BOXES), 5)
    for function in (
        lambda order: [emulated.box_mean_pool(features, BOXES[:-1], index[:-1], STRIDES, order=order)],
        lambda order: emulated.box_mean_pool_backward(gradient, features, BOXES, index, STRIDES, order=order),
        lambda order: emulated.multiscale_roi_align_backward(
            gradient[:1].permute(1, 2, 0)[..., None], features, BOXES, index, STRIDES, order=order
        ),
    ):
        for first, again in zip(function(0), function(order), strict=True):
            assert torch.equal(first, again)
