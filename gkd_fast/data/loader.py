"""Batches in an order that can be resumed in the middle of an epoch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, Subset

from gkd_fast.data.annotated import Target
from gkd_fast.data.pipeline import PreparedDataset


class EpochSampler(Sampler[int]):
    """Indices of one epoch, in an order that depends on (`seed`, epoch) alone.

    Args:
        length: number of samples.
        seed: seed of the order.
        shuffle: False gives 0, 1, 2, ... in every epoch.
        groups: a number for each sample; while shuffling, samples of one number share a batch, but for what is
            left over of every number at the end of the epoch. None: all samples are of one number.
        batch_size: consecutive samples that make up a batch.
        share: (rank, processes): every process gets an equal share of each whole batch; `batch_size` is a multiple of
            the number of processes.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool = True,
        groups: Sequence[int] | None = None,
        batch_size: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.groups, self.batch_size, self.share = groups, batch_size, share
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Goes to `epoch`, past its first `start` samples, those of all processes (for resuming)."""
        if epoch < 0 or not 0 <= start <= self.length:
            raise ValueError(f"expected epoch >= 0 and 0 <= start <= {self.length}, got {epoch} and {start}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Samples of a full epoch, wherever the next iteration starts."""
        return len(self._own(range(self.length)))

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(self._own(range(self.start, self.length)))
        order: list[int] = np.random.default_rng((self.seed, self.epoch)).permutation(self.length).tolist()
        if self.groups is not None:
            order = _grouped(order, self.groups, self.batch_size)
        return iter(self._own(order[self.start :]))

    def _own(self, order: Sequence[int]) -> Sequence[int]:
        rank, processes = self.share
        if processes == 1:
            return order
        return order[: len(order) // self.batch_size * self.batch_size][rank::processes]


def _grouped(order: list[int], groups: Sequence[int], batch_size: int) -> list[int]:
    """The order, changed so that whole batches are of one group; what is left over keeps its order at the end."""
    waiting: dict[int, list[int]] = {}
    grouped: list[int] = []
    for index in order:
        queue = waiting.setdefault(groups[index], [])
        queue.append(index)
        if len(queue) == batch_size:
            grouped += waiting.pop(groups[index])
    left = {index for queue in waiting.values() for index in queue}
    return grouped + [index for index in order if index in left]


def build_loader(
    dataset: PreparedDataset,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int,
    indices: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    prefetch: int = 2,
    share: tuple[int, int] = (0, 1),
) -> DataLoader[Any]:
    """Batches (images: list of uint8 [3,H,W], targets: list of dict) in the order of an `EpochSampler`.

    Call `loader.sampler.set_epoch(e)` and `dataset.set_epoch(e)` before each epoch. Tensors of a batch are plain
    tensors.

    Args:
        dataset: prepared samples.
        batch_size: images a batch, of all processes. While shuffling, an incomplete last batch is dropped if there is
            another.
        shuffle: permute, anew in every epoch; else in the order of the data.
        seed: of the order.
        workers: loader processes; 0 loads in this one.
        indices: only these samples.
        groups: a number for each sample; while shuffling, samples of one number share a batch (see `EpochSampler`).
        prefetch: batches that every loader process holds ready.
        share: (rank, processes) of this process among those that train together (see `EpochSampler`).
    """
    if batch_size < 1 or batch_size % share[1]:
        raise ValueError(f"expected a batch size that {share[1]} processes can share, got {batch_size}")
    data = dataset if indices is None else Subset(dataset, indices)
    return DataLoader(
        data,
        batch_size=batch_size // share[1],
        sampler=EpochSampler(len(data), seed=seed, shuffle=shuffle, groups=groups, batch_size=batch_size, share=share),
        num_workers=workers,
        collate_fn=_collate,
        # Else every iteration would draw from the global generator, and a resumed run would go on differently.
        generator=torch.Generator(),
        drop_last=shuffle and len(data) >= batch_size,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(samples: list[tuple[torch.Tensor, Target]]) -> tuple[list[torch.Tensor], list[Target]]:
    images = [image.as_subclass(torch.Tensor) for image, _ in samples]
    targets = [{**target, "boxes": target["boxes"].as_subclass(torch.Tensor)} for _, target in samples]
    return images, targets
