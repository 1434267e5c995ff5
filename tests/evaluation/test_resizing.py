"""Images resized by other libraries' rules, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from gkd_fast.evaluation.resizing import resized

SIZES = [
    (54, 96, 75, 133),
    (162, 288, 75, 133),
    (48, 64, 80, 107),
    (60, 90, 20, 30),
    (100, 100, 50, 50),
    (7, 5, 80, 57),
]


def image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def whole(found: torch.Tensor) -> np.ndarray:
    return found.mul(255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("old_h", "old_w", "new_h", "new_w"), SIZES)
def test_opencvs(old_h: int, old_w: int, new_h: int, new_w: int) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = image(old_h, old_w)
    found = resized(pixels, "opencv", short_side=min(new_h, new_w), long_side=max(new_h, new_w))
    expected = cv2.resize(pixels.permute(1, 2, 0).numpy(), (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(whole(found), expected)


def test_opencvs_as_recorded() -> None:
    """By cv2.resize of OpenCV 5.0: its roundings tell the rows of equal values apart."""
    row = torch.tensor([0, 90, 200, 255, 13], dtype=torch.uint8).expand(3, 5, 5)
    found = whole(resized(row, "opencv", short_side=8, long_side=8))
    assert found[:, :, 0].tolist() == [RECORDED[row in (1, 6)] for row in range(8)]


RECORDED = [0, 39, 97, 166, 217, 251, 119, 13], [0, 39, 97, 165, 217, 252, 119, 13]


@pytest.mark.parametrize(("old_h", "old_w", "new_h", "new_w"), SIZES)
def test_pillows(old_h: int, old_w: int, new_h: int, new_w: int) -> None:
    pixels = image(old_h, old_w)
    found = resized(pixels, "pillow", short_side=min(new_h, new_w), long_side=max(new_h, new_w))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    expected = np.asarray(picture.resize((new_w, new_h), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(whole(found), expected)


def test_torchvisions() -> None:
    pixels = image(150, 211).float() / 255
    transform = GeneralizedRCNNTransform(128, 170, [0.0] * 3, [1.0] * 3)
    expected, _ = transform([pixels])
    height, width = expected.image_sizes[0]
    found = resized(pixels, "torchvision", short_side=128, long_side=170)
    assert tuple(found.shape[-2:]) == (height, width)
    torch.testing.assert_close(found, expected.tensors[0, :, :height, :width])


@pytest.mark.parametrize("rule", ["opencv", "pillow"])
def test_fractions_of_whole_numbers_give_the_same(rule: str) -> None:
    pixels = image(40, 60)
    sides = {"short_side": 30, "long_side": 50}
    assert torch.equal(resized(pixels.float() / 255, rule, **sides), resized(pixels, rule, **sides))
    assert torch.equal(resized(pixels, rule, short_side=40, long_side=60), pixels.float() / 255)


def test_halves_are_rounded_as_each_library_does() -> None:
    pixels = image(100, 301)
    widths = {
        rule: resized(pixels, rule, short_side=50, long_side=999).shape[-1]
        for rule in ("antialiased", "opencv", "torchvision")
    }
    assert widths == {"antialiased": 150, "opencv": 151, "torchvision": 150}
