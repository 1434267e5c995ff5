"""What is found out about a data set before anything is shown."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gkd_fast.config import Config
from gkd_fast.data import AnnotatedImages
from gkd_fast.detectors import DetectorSpec, specs
from gkd_fast.detectors.anchor_fit import MATCH, Level, best_anchors, levels_of
from gkd_fast.inspect.boxes import Boxes, ClassFacts, class_facts
from gkd_fast.inspect.duplicates import Shared, shared_images
from gkd_fast.runs.choice import Choice
from gkd_fast.runs.data import Images
from gkd_fast.runs.settle import settle_with_reasons


@dataclass(frozen=True)
class Inspection:
    """A data set as training would read it.

    config: settled. images: of both splits. choices: what was chosen, and why. train, val: their boxes. shared:
    images of both splits; none are looked for among drawn scenes.
    """

    config: Config
    images: Images
    choices: list[Choice]
    train: Boxes
    val: Boxes
    shared: list[Shared]

    @property
    def spec(self) -> DetectorSpec:
        """The student's detector, whose anchors are the teacher's, too."""
        return specs(self.config.model)[1]

    @cached_property
    def levels(self) -> list[Level]:
        """The pyramid of the detector."""
        return levels_of(self.spec)

    @cached_property
    def facts(self) -> list[ClassFacts]:
        """The figures of every class."""
        return class_facts(self.train, self.val)

    @cached_property
    def shapes(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [B,2] of training and of validation boxes: width and height in pixels of the resized images."""
        data = self.config.data
        short, long = data.short_side, data.long_side
        return self.train.resized(short, long), self.val.resized(short, long)

    @cached_property
    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every training box the best IoU of an anchor, float64 [B], and that anchor's level, int64 [B]."""
        return best_anchors(self.shapes[0], self.levels)

    @cached_property
    def unmatched(self) -> np.ndarray:
        """int64 [K], the training boxes of every class that no anchor fits."""
        return np.bincount(self.train.label[self.matches[0] < MATCH], minlength=len(self.train.classes))

    @cached_property
    def repeated(self) -> np.ndarray:
        """bool [B], training boxes that stand a second time in their image with the same class."""
        rows = np.concatenate([self.train.image[:, None], self.train.label[:, None], self.train.corners], axis=1)
        first = np.unique(rows, axis=0, return_index=True)[1]
        again = np.ones(len(rows), dtype=bool)
        again[first] = False
        return again


def inspect_data(config: Config, given: Collection[str]) -> Inspection:
    """Read a data set and settle the settings, as training does; what is read is printed as it is there.

    Args:
        config: as the options say.
        given: names of the options that were given.

    Raises:
        InputError: for input that cannot be used.
    """
    config, images, choices = settle_with_reasons(config, given)
    shared = []
    if isinstance(images.train, AnnotatedImages) and isinstance(images.val, AnnotatedImages):
        shared = shared_images(images.train, images.val)
    return Inspection(config, images, choices, Boxes.of(images.train), Boxes.of(images.val), shared)


def with_short_side(config: Config, short_side: int) -> tuple[int, int]:
    """Another short side in pixels, and a long side that keeps its proportion to it."""
    data = config.data
    return short_side, max(round(data.long_side * short_side / data.short_side), short_side)
