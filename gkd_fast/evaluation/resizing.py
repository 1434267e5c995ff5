"""Images resized by the rule of the library that a detector comes from."""

from __future__ import annotations

import math
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize

from gkd_fast.data.transforms import resized_size

Rule = Literal["antialiased", "opencv", "pillow", "torchvision"]

_BITS = 11  # of OpenCV's weights


def resized(image: Tensor, rule: Rule, *, short_side: int, long_side: int) -> Tensor:
    """The image with its shorter side of a length, or its longer side of another if that is smaller.

    Args:
        image: uint8, or float in 0..1, [3,H,W].
        rule: whose bilinear interpolation, see `gkd_fast.detectors.conventions.Conventions.resize`. Those of OpenCV
            and Pillow take whole numbers of 0 to 255, to which a float image is rounded.
        short_side, long_side: in pixels.

    Returns:
        float32 in 0..1 [3,H',W'].
    """
    size = _size((image.shape[-2], image.shape[-1]), rule, short_side, long_side)
    if rule == "torchvision":
        return F.interpolate(_fractions(image)[None], size, mode="bilinear", align_corners=False)[0]
    if rule == "antialiased":
        return _fractions(resize(image, list(size), antialias=True))
    whole = image if image.dtype == torch.uint8 else image.mul(255).round().clamp(0, 255).byte()
    return _fractions((_opencv if rule == "opencv" else _pillow)(whole, size))


def _fractions(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float().div_(255)


def _size(size: tuple[int, int], rule: Rule, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width; a half is rounded up, but in ours to the even number, and in torchvision's cut off."""
    if rule == "antialiased":
        return resized_size(size, short_side=short_side, long_side=long_side)
    scale = min(short_side / min(size), long_side / max(size))
    added = 0.0 if rule == "torchvision" else 0.5
    height, width = (max(1, math.floor(side * scale + added)) for side in size)
    return height, width


def _pillow(image: Tensor, size: tuple[int, int]) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*size, 3).permute(2, 0, 1)


def _opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """cv2.resize with INTER_LINEAR on uint8, to the bit: weights of 11 bits, and its roundings of their products."""
    if tuple(image.shape[-2:]) == size:
        return image
    low, high, w0, w1 = _taps(image.shape[2], size[1], columns=True)
    rows = image.int()
    rows = rows[:, :, low] * w0 + rows[:, :, high] * w1
    low, high, w0, w1 = (part[:, None] for part in _taps(image.shape[1], size[0], columns=False))
    first, second = (rows[:, at[:, 0]] >> 4 for at in (low, high))
    mixed = ((first * w0 >> 16) + (second * w1 >> 16) + 2) >> 2
    return mixed.clamp(0, 255).byte()


def _taps(old: int, new: int, *, columns: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both source cells of every new one and their weights in units of 2**-11, int32 [new].

    Beyond an edge the weights of columns are 1 and 0, those of rows stay and the row counts twice.
    """
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    low = place.floor()
    share = place - low
    low = low.long()
    if columns:
        share = share.masked_fill((low < 0) | (low >= old - 1), 0.0)
    weights = ((1 - share) * 2**_BITS).round().int(), (share * 2**_BITS).round().int()
    return low.clamp(0, old - 1), (low + 1).clamp(0, old - 1), *weights
