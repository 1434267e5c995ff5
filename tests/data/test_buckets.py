from __future__ import annotations

import numpy as np
import pytest

from gkd_fast.data.buckets import SizeBuckets
from gkd_fast.data.loader import EpochSampler

LANDSCAPE, PORTRAIT, SQUARE = (90, 160), (160, 90), (90, 96)


def test_sizes_are_rounded_up_and_few() -> None:
    buckets = SizeBuckets([LANDSCAPE] * 5 + [PORTRAIT] * 3 + [SQUARE] * 2, 4)
    assert buckets.sizes == ((96, 96), (96, 160), (160, 96), (160, 160))
    assert [buckets.index(size) for size in (SQUARE, LANDSCAPE, PORTRAIT, (130, 130))] == [0, 1, 2, 3]
    assert buckets.fit([SQUARE, LANDSCAPE]) == (96, 160)
    assert buckets.fit([PORTRAIT, LANDSCAPE]) == (160, 160)


def test_merging_adds_the_least_padding() -> None:
    # The three squares cost 3 * 64 * 96 pixels as landscapes, the ten landscapes 10 * 64 * 160 as large squares.
    assert SizeBuckets([LANDSCAPE] * 10 + [PORTRAIT] * 10 + [SQUARE] * 3, 3).sizes == ((96, 160), (160, 96), (160, 160))
    assert SizeBuckets([LANDSCAPE] * 10 + [PORTRAIT] * 10 + [SQUARE] * 3, 1).sizes == ((160, 160),)


def test_equal_images_need_one_size() -> None:
    assert SizeBuckets([(128, 128)] * 9, 4).sizes == ((128, 128),)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_any_images_fit_into_the_limit(limit: int) -> None:
    sizes = [tuple(size) for size in np.random.default_rng(0).integers(60, 400, (200, 2)).tolist()]
    buckets = SizeBuckets(sizes, limit)
    assert len(buckets.sizes) <= limit
    for size in sizes:
        bucket = buckets.sizes[buckets.index(size)]
        assert bucket[0] >= size[0]
        assert bucket[1] >= size[1]
        assert bucket[0] % 32 == bucket[1] % 32 == 0


def test_unusable_arguments() -> None:
    with pytest.raises(ValueError, match="at least 1 size bucket, got 0"):
        SizeBuckets([SQUARE], 0)
    with pytest.raises(ValueError, match="at least one image"):
        SizeBuckets([], 1)
    with pytest.raises(ValueError, match=r"expected at most \(96, 96\) pixels .* got \(97, 20\)"):
        SizeBuckets([SQUARE], 1).index((97, 20))


def test_batches_are_of_one_group_but_for_the_rest() -> None:
    groups = [0, 1, 1, 2] * 6  # 6, 12 and 6 samples
    sampler = EpochSampler(24, seed=1, groups=groups, batch_size=4)
    order = list(sampler)
    assert sorted(order) == list(range(24))
    kinds = [{groups[index] for index in order[start : start + 4]} for start in range(0, 24, 4)]
    assert [len(kind) for kind in kinds] == [1] * 5 + [2]
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_grouped_batches_resume_in_the_middle() -> None:
    sampler = EpochSampler(23, seed=1, groups=[0, 1] * 11 + [1], batch_size=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, start=9)
    assert list(sampler) == whole[9:]


def test_one_group_keeps_the_plain_order() -> None:
    assert list(EpochSampler(10, seed=1, groups=[5] * 10, batch_size=3)) == list(EpochSampler(10, seed=1))
