"""Pooling beside torch's, which has to have the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gkd_fast import ops
from gkd_fast.ops.max_pool import _pool, max_pool

# Channels, height and width, side, stride, padding.
CASES = {
    "as ResNet's": (64, (10, 12), 3, 2, 1),
    "odd": (19, (7, 9), 3, 2, 1),
    "overlapping": (3, (6, 5), 3, 1, 1),
    "rows left over": (17, (8, 9), 2, 3, 0),
    "large": (5, (9, 9), 5, 2, 2),
    "one cell": (2, (1, 1), 1, 1, 0),
}


def make_maps(case: str, dtype: torch.dtype) -> Tensor:
    channels, sides, *_ = CASES[case]
    maps = torch.randn(2, channels, *sides, generator=torch.Generator().manual_seed(0)).to(dtype)
    maps[0, 0, 0, 0], maps[1, -1, -1, -1] = float("nan"), -float("inf")
    return maps.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_torchs(dtype: torch.dtype, case: str, backend: str) -> None:
    *_, side, stride, padding = CASES[case]
    maps = make_maps(case, dtype)
    found = max_pool(maps, side, stride=stride, padding=padding)
    torch.testing.assert_close(
        found, torch.max_pool2d(maps, side, stride, padding), rtol=0, atol=0, equal_nan=True, check_stride=False
    )
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_other_layouts_are_torchs() -> None:
    maps = torch.randn(2, 4, 6, 7)
    assert torch.equal(max_pool(maps, 3, stride=2, padding=1), torch.max_pool2d(maps, 3, 2, 1))
    assert max_pool(maps.to("meta"), 3, stride=2, padding=1).shape == (2, 4, 3, 4)


def test_raw_operator() -> None:
    maps = make_maps("odd", torch.float32)
    with ops.use_backend("cpu"):
        max_pool(maps, 3, stride=2)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(_pool, (maps.nan_to_num(), 3, 2, 1), test_utils=tests)


@pytest.mark.parametrize(("side", "stride", "padding"), [(0, 1, 0), (3, 0, 1), (3, 1, 2), (9, 1, 0)])
def test_wrong_arguments(side: int, stride: int, padding: int) -> None:
    with pytest.raises(ValueError, match="side"):
        max_pool(torch.randn(2, 3, 4, 5), side, stride=stride, padding=padding)
