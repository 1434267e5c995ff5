"""Which anchors or proposals a detector is trained on."""

import torch
from torch import Tensor

from gkd_fast.ops import reference
from gkd_fast.ops._anchors import check_matched
from gkd_fast.ops._checks import check_same_device, check_tensor
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define


@torch.no_grad()
def sample_balanced(matched: Tensor, seeds: Tensor, samples: int, *, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """A fixed number of positive and negative places of each image (Fast R-CNN, section 2.3).

    At most samples x positive_fraction positive ones are drawn, and negative ones up to `samples`. Which ones depends
    on the image's seed and its own matches alone: those with the smallest of 32-bit keys
    h(h(s_0 ^ h(s_1)) + i 0x9E3779B9), h being MurmurHash3's finaliser, s_0 and s_1 the words of the seed and i the
    place. It is the same draw on every device.

    Args:
        matched: int64 [N,A]; 0 or more: positive, -1: negative, anything else is never drawn.
        seeds: int64 [N].
        samples: places of an image S.
        positive_fraction: of them, from 0 to 1.

    Returns:
        index: int64 [N,S], the places drawn, the positive ones first, each kind in ascending order, then -1.
        drawn: int64 [N,A], `matched` where a place was drawn, else -2. No gradients.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_tensor("seeds", seeds, "[N]", torch.int64)
    check_matched(matched, seeds.shape[0])
    check_same_device(matched=matched, seeds=seeds)
    if samples < 0:
        raise ValueError(f"samples: expected 0 or more, got {samples}")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction: expected a number from 0 to 1, got {positive_fraction}")
    positives = int(samples * positive_fraction)
    if backend_for("sample_balanced", matched.device, ("cpu", "cuda")) == "reference":
        return reference.sample_balanced(matched, seeds, samples, positives)
    return _sample(matched, seeds, samples, positives)


def _fake(matched: Tensor, seeds: Tensor, samples: int, positives: int) -> tuple[Tensor, Tensor]:
    return matched.new_empty(matched.shape[0], samples), matched.new_empty(matched.shape)


_sample = define("sample_balanced(Tensor matched, Tensor seeds, int samples, int positives) -> (Tensor, Tensor)", _fake)
