"""Images, boxes and labels as users have them: taken, or refused in the first steps with what was expected."""

from __future__ import annotations

import pytest
import torch
from own_networks import make_boxes, make_images, make_pair, own_loss, train_step
from torch import Tensor

from gkd_fast.pyramids import infer_strides

BOXES, LABELS = make_boxes()


def first_step(given: object, labels: object = LABELS, images: Tensor | None = None, **options) -> None:
    """With these boxes and labels."""
    _, student, distiller = make_pair(**options)
    images = make_images() if images is None else images
    student(images)
    distiller(images, given, labels)


@pytest.mark.parametrize(
    ("boxes", "labels", "options", "message"),
    [
        (
            [b / 128 for b in BOXES],
            LABELS,
            {},
            'xyxy boxes of images of 128 x 128 pixels.*normalised ones are "cxcywh"',
        ),
        (BOXES, LABELS, {"boxes": "cxcywh"}, "expected cxcywh boxes .* far outside"),
        (
            [torch.cat([b[:, :2], b[:, 2:] - b[:, :2]], 1) for b in BOXES],
            LABELS,
            {},
            "expected xyxy boxes .*, got one of x1 y1 x2 y2 = ",
        ),
        ([4 * b for b in BOXES], LABELS, {}, "boxes: expected xyxy .* far outside"),
        ([b * torch.nan for b in BOXES], LABELS, {}, "boxes: expected finite numbers"),
        (
            BOXES,
            [n + 1 for n in LABELS],
            {},
            "labels: expected 0 to 2 for .*, got 1 to 3; count them from 0",
        ),
        (BOXES, [n - 1 for n in LABELS], {}, "labels: expected 0 to 2 .*, got -1 to 1"),
        (torch.cat(BOXES), LABELS, {}, "expected two tensors or two lists, got Tensor and list"),
        (torch.cat(BOXES), torch.cat(LABELS), {}, "image_index: expected the image of each box"),
        (BOXES[:1], LABELS[:1], {}, "expected a tensor for each of the 2 images .*, got 1 and 1"),
        (BOXES, [LABELS[0], LABELS[1][:4]], {}, "boxes: expected as many as labels and image_index, got 20, 14, 14"),
    ],
)
def test_unusable_boxes_and_labels(boxes: object, labels: object, options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        first_step(boxes, labels, **options)


def test_boxes_that_reach_over_the_edge_are_taken() -> None:
    first_step([b - 20 for b in BOXES])
    first_step([b + 30 for b in BOXES])
    first_step([b * 0 + torch.tensor([0.0, 0, 128, 128]) for b in BOXES])


def test_an_image_that_is_not_there() -> None:
    _, student, distiller = make_pair()
    student(make_images())
    with pytest.raises(ValueError, match="image_index: expected 0 to 1, got 2"):
        distiller(make_images(), torch.cat(BOXES), torch.cat(LABELS), torch.full((20,), 2))


def test_images_divided_twice_are_warned_of() -> None:
    images = torch.rand(2, 3, 128, 128)
    with pytest.warns(UserWarning, match=r"images: no value above 0\.0039; were they divided by 255 twice\?"):
        first_step(BOXES, images=images / 255)


def test_later_steps_are_not_looked_at() -> None:
    _, student, distiller = make_pair(checked_steps=1, refresh_steps=None, method="cwd")
    train_step(student, distiller)
    images = make_images()
    own_loss(student(images))
    distiller(images, [b / 128 for b in BOXES], LABELS)


def test_batches_without_any_box() -> None:
    _, student, distiller = make_pair(method="gkd+fgd+rkd")
    none = {"boxes": [b[:0] for b in BOXES], "labels": [n[:0] for n in LABELS]}
    for _ in range(4):  # over the turn of the first prototypes, which then have nothing to come from
        terms = train_step(student, distiller, **none)
        assert all(value.isfinite() for value in terms.values())
    assert distiller.bank is None
    for seed in range(3):
        train_step(student, distiller, seed=seed)
    assert distiller.bank is not None
    terms = train_step(student, distiller, **none)
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_one_image_without_boxes() -> None:
    _, student, distiller = make_pair()
    terms = train_step(student, distiller, boxes=[BOXES[0], BOXES[1][:0]], labels=[LABELS[0], LABELS[1][:0]])
    assert all(value.isfinite() for value in terms.values())


@pytest.mark.parametrize(
    ("size", "cells", "strides"),
    [
        ((320, 320), (20, 10, 5, 3, 2, 1), (16, 32, 64, 128, 256, 512)),  # SSDlite
        ((300, 300), (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 128, 256)),  # SSD
        ((640, 640), (80, 40, 20), (8, 16, 32)),
        ((518, 518), (37,), (14,)),  # patches
        ((100, 100), (6,), (16,)),  # without padding
        ((64, 64), (8, 4, 2, 1, 1), (8, 16, 32, 64, 128)),
    ],
)
def test_strides_from_sizes(size: tuple[int, int], cells: tuple[int, ...], strides: tuple[float, ...]) -> None:
    assert infer_strides(size, [torch.empty(1, 1, n, n) for n in cells]) == strides


def test_strides_of_long_images() -> None:
    maps, height, width = [], 800 // 8, 1344 // 8
    for _ in range(5):
        maps.append(torch.empty(1, 1, height, width))
        height, width = -(-height // 2), -(-width // 2)
    assert infer_strides((800, 1344), maps) == (8, 16, 32, 64, 128)
    with pytest.raises(ValueError, match=r"expected maps of one stride a side, got \[10, 40\] cells"):
        infer_strides((100, 100), [torch.empty(1, 1, 10, 40)])
