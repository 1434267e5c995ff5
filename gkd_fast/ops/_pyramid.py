"""Shapes and memory formats of a pyramid: all that its gradient needs of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PyramidShape(NamedTuple):
    """L maps [images,channels,heights[l],widths[l]]; channels_last[l] is 1 where a cell's channels are adjacent."""

    images: int
    channels: int
    heights: list[int]
    widths: list[int]
    channels_last: list[int]

    @classmethod
    def of(cls, features: Sequence[Tensor]) -> "PyramidShape":
        """Shape of L maps [N,C,H_l,W_l]."""
        images, channels = features[0].shape[:2]
        heights, widths = ([f.shape[axis] for f in features] for axis in (2, 3))
        return cls(images, channels, heights, widths, [int(is_channels_last(f)) for f in features])

    def new_empty(self, like: Tensor) -> list[Tensor]:
        """L maps of this shape and format, uninitialised, with the dtype and device of `like`."""
        return [
            like.new_empty((self.images, height, width, self.channels)).permute(0, 3, 1, 2)
            if last
            else like.new_empty((self.images, self.channels, height, width))
            for height, width, last in zip(self.heights, self.widths, self.channels_last, strict=True)
        ]


def is_channels_last(feature: Tensor) -> bool:
    """Whether a map lies as channels_last and not as NCHW as well."""
    return feature.is_contiguous(memory_format=torch.channels_last) and not feature.is_contiguous()
