"""The CUDA kernels' own source under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

import emulated
import pytest
import torch
from test_emulated_kernels import BOXES, STRIDES, images_of, pyramid

HUGE = torch.tensor(
    [[0.0, 0.0, 1e9, 1e9], [-1e30, -1e30, 1e30, 1e30], [5.0, 5.0, float("inf"), 7.0], [1e38, 0.0, 9.0, 9.0]]
)


def run_all(features, boxes, sanitizer, output_size=(3, 2), **sampling):
    """Each operator once in each direction; a report of the sanitizer is an EmulationError."""
    index, strides = images_of(boxes, features[0].shape[0]), STRIDES[: len(features)]
    arguments = features, boxes, index, strides
    means = emulated.box_mean_pool(*arguments, sanitizer=sanitizer)
    emulated.box_mean_pool_backward(means, *arguments, sanitizer=sanitizer)
    pooled = emulated.multiscale_roi_align(*arguments, output_size=output_size, sanitizer=sanitizer, **sampling)
    emulated.multiscale_roi_align_backward(pooled, *arguments, sanitizer=sanitizer, **sampling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "padded_rows"])
@pytest.mark.parametrize("channels", [3, 40])
def test_no_access_outside(dtype, layout, channels):
    features = pyramid(dtype, layout, channels=channels, sizes=((9, 40), (5, 7), (1, 1)))
    run_all(features, torch.cat([BOXES, HUGE]), "address", sampling_ratio=2, canonical_size=40, canonical_level=3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("aligned", [False, True])
def test_no_access_outside_with_adaptive_samples(layout, aligned):
    features = pyramid(torch.float32, layout, sizes=((9, 40),))
    run_all(features, torch.cat([BOXES, HUGE]), "address", (9, 5), sampling_ratio=0, aligned=aligned)


@pytest.mark.parametrize(
    ("dtype", "layout", "channels"),
    [
        (torch.float32, "contiguous", 35),  # two blocks of channels
        (torch.float32, "channels_last", 4),
        (torch.bfloat16, "contiguous", 3),
        (torch.bfloat16, "channels_last", 8),
    ],
)
def test_no_race(dtype, layout, channels):
    features = pyramid(dtype, layout, channels=channels, images=1, sizes=((9, 40), (1, 1)))
    run_all(features, BOXES[[0, 4, 7, 8]], "thread", canonical_size=40, canonical_level=3)
