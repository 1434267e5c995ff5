"""Boxes drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """RGB colours 0..255 around the circle of hues, neighbours far apart."""
    turns = [(k * 0.618034) % 1.0 for k in range(count)]  # the golden ratio spreads any number of points evenly
    parts = (colorsys.hsv_to_rgb(turn, 0.75, 0.95) for turn in turns)
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in parts]


def draw(
    image: Tensor, found: dict[str, Tensor], classes: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """The image uint8 [3,H,W] with its detections."""
    if not len(found["labels"]):
        return to_pil_image(image)
    labels = [label - 1 for label in found["labels"].tolist()]
    texts = [f"{classes[k]} {score:.2f}" for k, score in zip(labels, found["scores"].tolist(), strict=True)]
    side = min(image.shape[-2:])
    own = [colours[k] for k in labels]
    return to_pil_image(
        draw_bounding_boxes(image, found["boxes"], texts, own, width=max(1, side // 200), label_colors=own)
    )
