"""Samples as the detectors take them: resized once, cached, flipped reproducibly."""

from __future__ import annotations

import copy

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from gkd_fast.data.annotated import Detectable, Target


class PreparedDataset(Dataset):
    """A data set with its images resized and, in training, flipped.

    Args:
        dataset: images and boxes in original pixels.
        short_side, long_side: the short side becomes `short_side` pixels long unless the long one would exceed
            `long_side`.
        flip: probability of a horizontal flip, drawn from (seed, epoch, index).
        seed: of the flips.
        cache: keep resized images in memory.
    """

    def __init__(
        self,
        dataset: Detectable,
        *,
        short_side: int,
        long_side: int,
        flip: float = 0.0,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        self.dataset = dataset
        self.classes = dataset.classes
        self.flip = flip
        self.seed = seed
        self.epoch = 0
        self.short_side = short_side
        self.long_side = long_side
        self._cache: dict[int, tuple[tv_tensors.Image, Target]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on."""
        self.epoch = epoch

    def without_flip(self) -> PreparedDataset:
        """The same data, cache included, without augmentation."""
        plain = copy.copy(self)
        plain.flip = 0.0
        return plain

    def ground_truth(self) -> dict:
        """Annotations in COCO format, in original pixels."""
        return self.dataset.ground_truth()

    def labels_per_image(self) -> list[set[int]]:
        """The classes (from 0) that every image shows, without decoding it."""
        truth = self.dataset.ground_truth()
        labels: dict[int, set[int]] = {image["id"]: set() for image in truth["images"]}
        for annotation in truth["annotations"]:
            if not annotation["iscrowd"]:
                labels[annotation["image_id"]].add(annotation["category_id"] - 1)
        return list(labels.values())

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:
        image, target = self._resized(index)
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, index)) & 0x7FFFFFFF)
        if self.flip and float(torch.rand((), generator=generator)) < self.flip:
            image, boxes = v2.functional.horizontal_flip(image), v2.functional.horizontal_flip(target["boxes"])
            target = {**target, "boxes": boxes}
        return image, target

    def _resized(self, index: int) -> tuple[tv_tensors.Image, Target]:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image, target = self.dataset[index]
        height, width = image.shape[-2:]
        scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        size = [round(height * scale), round(width * scale)]
        resized = v2.functional.resize(image, size, antialias=True)
        boxes = v2.functional.resize(target["boxes"], size)
        sample = resized, {**target, "boxes": boxes}
        if self._cache is not None:
            self._cache[index] = sample
        return sample
