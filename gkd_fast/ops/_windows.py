"""Results of operators that move a window over maps."""

from torch import Tensor


def new_windows(maps: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """An empty tensor in channels_last for one value a channel and window of maps [N,C,H,W]."""
    height, width = ((length + 2 * padding - side) // stride + 1 for length in maps.shape[2:])
    return maps.new_empty((len(maps), height, width, maps.shape[1])).permute(0, 3, 1, 2)
