"""The boxes of a split as columns, and what they come to for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gkd_fast.data import AnnotatedImages, Scenes
from gkd_fast.data.transforms import resized_size

# COCO's limit of a small object, in pixels of the original image: sides of a square.
SMALL = 32


@dataclass(frozen=True)
class Boxes:
    """The boxes of a split that are trained on or evaluated on; crowds and difficult objects are not among them.

    classes: names. sizes: int64 [N,2], (height, width) of each image. image: int64 [B], position of each box's image.
    label: int64 [B] from 0. corners: float64 [B,4] x1 y1 x2 y2 in pixels of the original images.
    """

    classes: tuple[str, ...]
    sizes: np.ndarray
    image: np.ndarray
    label: np.ndarray
    corners: np.ndarray

    @classmethod
    def of(cls, dataset: AnnotatedImages | Scenes) -> Boxes:
        """Those of a data set; no image is opened."""
        if isinstance(dataset, AnnotatedImages):
            kept = [~record.ignored for record in dataset.records]
            sizes = [record.size for record in dataset.records]
            corners = [record.boxes[keep] for record, keep in zip(dataset.records, kept, strict=True)]
            labels = [record.labels[keep] for record, keep in zip(dataset.records, kept, strict=True)]
            image = np.repeat(np.arange(len(kept)), [len(own) for own in labels])
        else:
            truth = dataset.ground_truth()
            sizes = [(image["height"], image["width"]) for image in truth["images"]]
            xywh = np.array([item["bbox"] for item in truth["annotations"]], dtype=np.float64).reshape(-1, 4)
            corners = [np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)]
            labels = [np.array([item["category_id"] for item in truth["annotations"]], dtype=np.int64)]
            image = np.array([item["image_id"] for item in truth["annotations"]], dtype=np.int64)
        return cls(
            dataset.classes,
            np.array(sizes, dtype=np.int64).reshape(-1, 2),
            image,
            np.concatenate(labels).astype(np.int64) - 1,
            np.concatenate(corners).astype(np.float64),
        )

    @property
    def shapes(self) -> np.ndarray:
        """float64 [B,2], width and height in pixels of the original images."""
        return self.corners[:, 2:] - self.corners[:, :2]

    @property
    def sides(self) -> np.ndarray:
        """float64 [B], the side of a square as large as the box, in pixels of the original images."""
        return np.sqrt(self.shapes.prod(1))

    def resized(self, short_side: int, long_side: int) -> np.ndarray:
        """float64 [B,2], width and height in pixels once the images are resized as for training."""
        distinct, which = np.unique(self.sizes, axis=0, return_inverse=True)
        sides = {"short_side": short_side, "long_side": long_side}
        new = np.array([resized_size((int(height), int(width)), **sides) for height, width in distinct])
        factors = (new / distinct)[:, ::-1][which.reshape(-1)]
        return self.shapes * factors[self.image]

    def per_image(self) -> np.ndarray:
        """int64 [N], the number of boxes in each image."""
        return np.bincount(self.image, minlength=len(self.sizes))

    def per_class(self) -> np.ndarray:
        """int64 [K], the number of boxes of each class."""
        return np.bincount(self.label, minlength=len(self.classes))

    def images_per_class(self) -> np.ndarray:
        """int64 [K], the number of images that have a box of each class."""
        pairs = np.unique(np.stack([self.label, self.image], axis=1), axis=0)
        return np.bincount(pairs[:, 0], minlength=len(self.classes))


@dataclass(frozen=True)
class ClassFacts:
    """A class in figures.

    train, val: boxes. train_images, val_images: images with any. side: median over the training boxes, in pixels of
    the original images; small: the share of them below COCO's 32 x 32 pixels; NaN where there are none.
    """

    name: str
    train: int
    val: int
    train_images: int
    val_images: int
    side: float
    small: float


def class_facts(train: Boxes, val: Boxes) -> list[ClassFacts]:
    """The figures of every class, in label order."""
    counts = [[own.per_class(), own.images_per_class()] for own in (train, val)]
    order = np.argsort(train.label, kind="stable")
    sides = np.split(train.sides[order], np.cumsum(counts[0][0])[:-1])
    return [
        ClassFacts(
            name,
            int(counts[0][0][k]),
            int(counts[1][0][k]),
            int(counts[0][1][k]),
            int(counts[1][1][k]),
            side=float(np.median(sides[k])) if len(sides[k]) else np.nan,
            small=float((sides[k] < SMALL).mean()) if len(sides[k]) else np.nan,
        )
        for k, name in enumerate(train.classes)
    ]


def ordered(facts: Sequence[ClassFacts], most: int) -> tuple[list[ClassFacts], int]:
    """What a table of at most `most` lines shows, and how many classes it leaves out.

    Few classes keep their order; of many the most frequent and the rarest are shown, by their number of boxes.
    """
    if len(facts) <= most // 4:
        return list(facts), 0
    by_count = sorted(facts, key=lambda item: -item.train)
    if len(facts) <= most:
        return by_count, 0
    half = most // 2
    return [*by_count[:half], *by_count[-half:]], len(facts) - 2 * half


def class_table(facts: Sequence[ClassFacts], *, most: int = 100) -> list[str]:
    """Lines of text, a line a class."""
    shown, left = ordered(facts, most)
    head = ("class", "train boxes", "images", "val boxes", "images", "side px", "small")
    rows = [head] + [
        (
            *(item.name, f"{item.train:,}", f"{item.train_images:,}", f"{item.val:,}", f"{item.val_images:,}"),
            *(("-", "-") if not item.train else (f"{item.side:.0f}", f"{item.small:.0%}")),
        )
        for item in shown
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    legend = f"side: median of the training boxes in the original images; small: below {SMALL} x {SMALL} pixels (COCO)"
    if left:
        lines.insert(len(shown) // 2 + 1, f"... {left:,} classes between them")
    return [*lines, legend]
