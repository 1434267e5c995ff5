"""Problem sizes and the random inputs that fill them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one training step (images, pyramid, instances) and of one prototype refresh (problems)."""

    name: str
    images: int
    height: int
    width: int
    channels: int
    levels: int = 5
    instances: int
    classes: int
    prototypes_per_class: int
    rois: int
    problems: int
    samples: int
    sample_channels: int
    picks: int = 10

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a cell, 4 on the finest level and doubling."""
        return tuple(4 << level for level in range(self.levels))

    @property
    def prototypes(self) -> int:
        """Prototypes of all classes on one level."""
        return self.classes * self.prototypes_per_class

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of every level."""
        return [(math.ceil(self.height / s), math.ceil(self.width / s)) for s in self.strides]


COCO = Shape(
    name="coco",
    images=2,
    height=800,
    width=1344,
    channels=256,
    instances=256,
    classes=80,
    prototypes_per_class=10,
    rois=1024,
    problems=400,
    samples=800,
    sample_channels=256,
)
SMALL = Shape(
    name="small",
    images=4,
    height=320,
    width=320,
    channels=64,
    instances=64,
    classes=20,
    prototypes_per_class=10,
    rois=256,
    problems=40,
    samples=200,
    sample_channels=64,
)
SHAPES = {shape.name: shape for shape in (COCO, SMALL)}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}

# sqrt(area) of COCO's objects, in pixels of a 640x480 image, as a log-normal: 41 % lie below 32 pixels and
# 75 % below 96 (the data set's small and medium), and two quantiles determine its two parameters.
_LOG_SIDE_STD = math.log(96 / 32) / (0.6745 + 0.2275)
_LOG_SIDE_MEAN = math.log(32) + 0.2275 * _LOG_SIDE_STD
_LOG_ASPECT_STD = 0.5
_COCO_SHORT_SIDE = 480.0


def make_generator() -> torch.Generator:
    """A CPU generator with the bench's seed: inputs are the same on every device."""
    return torch.Generator().manual_seed(SEED)


def make_boxes(shape: Shape, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes [count,4] (x1 y1 x2 y2, pixels) of COCO-like sizes, and their image index, ascending."""
    scale = min(shape.height, shape.width) / _COCO_SHORT_SIDE
    side = torch.exp(_LOG_SIDE_MEAN + _LOG_SIDE_STD * torch.randn(count, generator=generator)) * scale
    stretch = torch.exp(0.5 * _LOG_ASPECT_STD * torch.randn(count, generator=generator))
    width = (side * stretch).clamp(2.0, shape.width)
    height = (side / stretch).clamp(2.0, shape.height)
    left, top = (
        torch.rand(count, generator=generator) * (size - extent)
        for size, extent in ((shape.width, width), (shape.height, height))
    )
    boxes = torch.stack([left, top, left + width, top + height], dim=1)
    return boxes, torch.arange(count) * shape.images // count


def make_pyramid(shape: Shape, generator: torch.Generator) -> list[Tensor]:
    """Maps [N,C,H_l,W_l]: a mean for every channel of an image, as feature maps have, and noise around it."""
    means = torch.randn(shape.images, shape.channels, 1, 1, generator=generator)
    return [
        torch.randn(shape.images, shape.channels, height, width, generator=generator).mul_(0.5).add_(means)
        for height, width in shape.sizes
    ]


def make_samples(shape: Shape, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """L2-normalised embeddings [G,n,D] of both spaces; 20 clusters a problem, the same members in both."""
    size = (shape.problems, shape.samples, shape.sample_channels)
    member = torch.randint(20, (shape.problems, shape.samples, 1), generator=generator).expand(size)
    spaces = []
    for _ in range(2):
        centres = torch.randn(shape.problems, 20, shape.sample_channels, generator=generator)
        rows = centres.gather(1, member).add_(torch.randn(size, generator=generator).mul_(0.7))
        spaces.append(torch.nn.functional.normalize(rows, dim=2))
    return spaces[0], spaces[1]
