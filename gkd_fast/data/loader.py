"""Batches in an order that can be resumed in the middle of an epoch."""

from collections.abc import Iterator, Sequence

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
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool = True) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Goes to `epoch`, past its first `start` samples (for resuming)."""
        if epoch < 0 or not 0 <= start <= self.length:
            raise ValueError(f"expected epoch >= 0 and 0 <= start <= {self.length}, got {epoch} and {start}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Samples of a full epoch, wherever the next iteration starts."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.start, self.length))
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter(order[self.start :].tolist())


def build_loader(
    dataset: PreparedDataset,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int,
    indices: Sequence[int] | None = None,
) -> DataLoader:
    """Batches (images: list of uint8 [3,H,W], targets: list of dict) in the order of an `EpochSampler`.

    Call `loader.sampler.set_epoch(e)` and `dataset.set_epoch(e)` before each epoch. Tensors of a batch are plain
    tensors.

    Args:
        dataset: prepared samples.
        batch_size: images a batch. While shuffling, an incomplete last batch is dropped if there is another.
        shuffle: permute, anew in every epoch; else in the order of the data.
        seed: of the order.
        workers: loader processes; 0 loads in this one.
        indices: only these samples.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    data = dataset if indices is None else Subset(dataset, indices)
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=EpochSampler(len(data), seed=seed, shuffle=shuffle),
        num_workers=workers,
        collate_fn=_collate,
        # Else every iteration would draw from the global generator, and a resumed run would go on differently.
        generator=torch.Generator(),
        drop_last=shuffle and len(data) >= batch_size,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(samples: list[tuple[torch.Tensor, Target]]) -> tuple[list[torch.Tensor], list[Target]]:
    images = [image.as_subclass(torch.Tensor) for image, _ in samples]
    targets = [{**target, "boxes": target["boxes"].as_subclass(torch.Tensor)} for _, target in samples]
    return images, targets
