"""Batches in an order that a seed, an epoch and a position fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from gkd_fast.data.pipeline import PreparedDataset


class EpochSampler(Sampler[int]):
    """A permutation of the data set for every epoch, or its plain order.

    Args:
        length: of the data set.
        seed: of the permutations.
        shuffle: permute.
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Go to an epoch, past its first `start` samples."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.length))
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        return iter(torch.randperm(self.length, generator=generator)[self.start :].tolist())

    def __len__(self) -> int:
        return self.length


def build_loader(
    dataset: PreparedDataset,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int,
    indices: Sequence[int] | None = None,
) -> DataLoader:
    """Batches (list of uint8 images, list of targets).

    Args:
        dataset: prepared samples.
        batch_size: images a batch. While shuffling, an incomplete last batch is dropped if there is another.
        shuffle: order by `EpochSampler`, else as the data lie.
        seed: of the order.
        workers: loader processes.
        indices: only these samples.
    """
    data = dataset if indices is None else Subset(dataset, indices)
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=EpochSampler(len(data), seed=seed, shuffle=shuffle),
        drop_last=shuffle and len(data) >= batch_size,
        num_workers=workers,
        collate_fn=_collate,
    )


def _collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    images, targets = zip(*samples, strict=True)
    return [image.as_subclass(Tensor) for image in images], list(targets)
