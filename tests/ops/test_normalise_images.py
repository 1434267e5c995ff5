"""Batches of bytes: the kernel beside the reference; tests/detectors holds both to torchvision's transform."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gkd_fast import ops
from gkd_fast.ops.normalise_images import _normalise, normalise_images

VALUES = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))


def make_images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.mark.parametrize("sizes", [[(5, 7)], [(8, 9), (3, 4), (0, 6)]])
def test_every_byte_is_its_number_and_the_rest_zero(sizes: list[tuple[int, int]], backend: str) -> None:
    images = [image.flip(-1) for image in make_images(*sizes)]
    images[0] = images[0].transpose(1, 2).contiguous().transpose(1, 2)
    batch = normalise_images(images, VALUES, (8, 10))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch.shape == (len(images), 3, 8, 10)
    for found, image in zip(batch, images, strict=True):
        _, height, width = image.shape
        for colour in range(3):
            assert torch.equal(found[colour, :height, :width], VALUES[colour][image[colour].long()])
        assert found[:, height:].count_nonzero() == found[:, :, width:].count_nonzero() == 0


def test_raw_operator() -> None:
    images = make_images((4, 5), (2, 3))
    with ops.use_backend("cpu"):
        normalise_images(images, VALUES, (4, 6))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(_normalise, (images, VALUES, 4, 6), test_utils=tests)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalise_images([], VALUES, (4, 4)), "images: expected at least one, got none"),
        (
            lambda: normalise_images(make_images((4, 5)), VALUES, (4, 4)),
            r"images\[0\]: expected shape \[3,H,W\] with H",
        ),
        (lambda: normalise_images(make_images((4, 4)), VALUES[:2], (4, 4)), r"values: expected float32 \[3,256\]"),
    ],
)
def test_wrong_arguments(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match=r"images\[0\]: expected torch.uint8, got torch.int64"):
        normalise_images([make_images((4, 4))[0].long()], VALUES, (4, 4))
