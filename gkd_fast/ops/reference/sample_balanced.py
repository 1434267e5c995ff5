"""Balanced samples by hashed keys: the same on every device, and whoever else is in the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_LAST = 2**62  # a constant: a number of anchors would be another graph for each


def sample_balanced(matched: Tensor, seeds: Tensor, samples: int, positives: int) -> tuple[Tensor, Tensor]:
    """Places [N,S] and matches of what was drawn [N,A]; see `gkd_fast.ops.sample_balanced`."""
    anchors = matched.shape[1]
    place = torch.arange(anchors, device=matched.device)
    keys = _keys(seeds, place) << 31 | place
    positive, negative = matched >= 0, matched == -1
    found = positive.sum(1).clamp(max=positives)
    drawn = _smallest(keys, positive, found)
    drawn = drawn | _smallest(keys, negative, torch.minimum(negative.sum(1), samples - found))
    # Positive ones first, each kind in the order of the anchors.
    order = torch.where(drawn, place + anchors * (~positive), _LAST).sort(1).values
    order = F.pad(order, (0, samples), value=_LAST)[:, :samples]
    index = torch.where(order < _LAST, order % max(anchors, 1), -1)
    return index, matched.where(drawn, -2)


def _keys(seeds: Tensor, place: Tensor) -> Tensor:
    """[N,A] 32 random bits for every place of every image."""
    mixed = _mix((seeds & _WORD) ^ _mix(seeds >> 32 & _WORD))
    return _mix(mixed[:, None] + place * _GOLDEN & _WORD)


def _mix(word: Tensor) -> Tensor:
    """MurmurHash3's finaliser, a bijection of 32-bit words."""
    word = (word ^ word >> 16) * 0x85EBCA6B & _WORD
    word = (word ^ word >> 13) * 0xC2B2AE35 & _WORD
    return word ^ word >> 16


def _smallest(keys: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Which of the places [N,A] in question have the `count` [N] smallest keys."""
    sorted_keys = keys.where(among, torch.iinfo(keys.dtype).max).sort(1).values
    bound = F.pad(sorted_keys, (1, 0), value=-1).gather(1, count[:, None])
    return among & (keys <= bound)
