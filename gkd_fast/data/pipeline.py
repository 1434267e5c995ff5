"""From a data set to training samples: resize, optionally cache, flip reproducibly."""

import copy
import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from gkd_fast.data.annotated import Detectable, Target
from gkd_fast.data.transforms import horizontal_flip, resize, resized_size


class PreparedDataset(Dataset[Any]):
    """Samples of `dataset`, resized and flipped; boxes in pixels of the resized image.

    Whether a sample is flipped depends on (`seed`, epoch, index) alone, so it is the same in any worker, in any
    order and after resuming. `image_id` and `original_size` stay those of the original image; `flipped` says whether
    the sample is mirrored.

    Args:
        dataset: the data set to prepare.
        short_side: length in pixels that the shorter side gets ...
        long_side: ... unless the longer side would exceed this length in pixels.
        flip: probability of a horizontal flip.
        seed: seed of the flips, at least 0.
        cache: keep resized uint8 images in memory (height x width x 3 bytes each; every loader worker has its own).
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
        if not 0 < short_side <= long_side:
            raise ValueError(
                f"expected 0 < short_side <= long_side, got short_side {short_side}, long_side {long_side}"
            )
        if not 0 <= flip <= 1:
            raise ValueError(f"expected a flip probability in [0, 1], got {flip}")
        if seed < 0:
            raise ValueError(f"expected a seed of at least 0, got {seed}")
        self.dataset, self.short_side, self.long_side = dataset, short_side, long_side
        self.flip, self.seed = flip, seed
        self._cache: dict[int, tuple[tv_tensors.Image, Target]] | None = {} if cache else None
        self._truth: dict[str, Any] | None = None
        # In shared memory, so that persistent loader workers see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draws the flips of `epoch` (from 0) from now on."""
        self._epoch.fill_(epoch)

    def without_flip(self) -> Self:
        """The same data, cache included, without augmentation."""
        plain = copy.copy(self)
        plain.flip = 0.0
        return plain

    def labels_per_image(self) -> list[set[int]]:
        """The classes (label - 1) of each sample's trainable boxes, without decoding or drawing the images."""
        truth = self.ground_truth()
        labels: dict[int, set[int]] = {image["id"]: set() for image in truth["images"]}
        for annotation in truth["annotations"]:
            if not annotation["iscrowd"]:
                labels[annotation["image_id"]].add(annotation["category_id"] - 1)
        return list(labels.values())

    def boxes_per_image(self, indices: Iterable[int]) -> dict[int, int]:
        """The number of trainable boxes of the given samples by image id, in the order given."""
        truth = self.ground_truth()
        counts = Counter(item["image_id"] for item in truth["annotations"] if not item["iscrowd"])
        images = [truth["images"][index]["id"] for index in indices]
        return {image: counts[image] for image in images}

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels of each sample's resized image, without decoding or drawing it."""
        sides = {"short_side": self.short_side, "long_side": self.long_side}
        return [resized_size((image["height"], image["width"]), **sides) for image in self.ground_truth()["images"]]

    def ground_truth(self) -> dict[str, Any]:
        """Annotations in COCO format, in pixels of the original images."""
        if self._truth is None:
            self._truth = self.dataset.ground_truth()
        return self._truth

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:
        """The resized image (uint8 [3,H,W]) and its target. Do not write into them when the data set caches."""
        index = operator.index(index)
        image, target = self._resized(index)
        flipped = bool(self.flip) and np.random.default_rng((self.seed, self.epoch, index)).random() < self.flip
        if flipped:
            image, target = horizontal_flip(image, target)
        return image, {**target, "flipped": flipped}

    def _resized(self, index: int) -> tuple[tv_tensors.Image, Target]:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = resize(*self.dataset[index], short_side=self.short_side, long_side=self.long_side)
        if self._cache is not None:
            self._cache[index] = sample
        return sample
