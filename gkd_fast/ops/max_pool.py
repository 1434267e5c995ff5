"""Pooling by the largest value, of frozen networks."""

import torch
from torch import Tensor

from gkd_fast.ops._checks import check_tensor
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define
from gkd_fast.ops._windows import new_windows


@torch.no_grad()
def max_pool(maps: Tensor, side: int, *, stride: int, padding: int = 0) -> Tensor:
    """The largest value of each window, as torch's `max_pool2d`, which also finds and stores where it lies.

    The CPU has a kernel for maps in channels_last; all else, and a GPU, takes torch's.

    Args:
        maps: [N,C,H,W], float32, float64, bfloat16 or float16, any memory format.
        side: of the windows, in cells.
        stride: in cells.
        padding: cells of minus infinity on each side, at most half a window.

    Returns:
        [N,C,H',W'] in the dtype of the maps. No gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, or a window larger than the maps.
    """
    check_tensor("maps", maps, "[N,C,H,W]")
    if side < 1 or stride < 1 or not 0 <= 2 * padding <= side:
        got = f"{side}, {stride} and {padding}"
        raise ValueError(f"side, stride, padding: expected at least 1, 1 and 0, at most half of the side; got {got}")
    if min(maps.shape[2:]) + 2 * padding < side:
        raise ValueError(f"side: expected a window within the padded maps {tuple(maps.shape)}, got {side}")
    fits = maps.is_contiguous(memory_format=torch.channels_last)
    if backend_for("max_pool", maps.device, ("cpu", "reference") if fits else ("reference",)) == "cpu":
        return _pool(maps, side, stride, padding)
    return torch.max_pool2d(maps, side, stride, padding)


_pool = define("max_pool(Tensor maps, int side, int stride, int padding) -> Tensor", new_windows)
