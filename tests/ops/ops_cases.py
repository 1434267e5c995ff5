"""Inputs that the operator tests share."""

import torch

STRIDES = (4, 8, 16)
MAP_SIZES = ((13, 17), (7, 9), (1, 1))


def pyramid(*, images=2, channels=3, sizes=MAP_SIZES, dtype=torch.float32, channels_last=False, seed=0):
    """Maps [N,C,H_l,W_l]; the last level has a single cell."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(images, channels, *size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    return [m.contiguous(memory_format=torch.channels_last) for m in maps] if channels_last else maps


LAYOUTS = ("contiguous", "channels_last", "strided")


def laid_out(tensor, layout):
    """The same numbers in another memory layout; "strided": every second column of a wider tensor."""
    if layout == "strided":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return tensor.contiguous(memory_format=memory_format)


def boxes_of(count, *, images=2, extent=(68.0, 52.0), seed=1):
    """Random boxes [B,4] that may stick out of the image, and their images."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(extent)
    corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * size
    side = torch.rand(count, 2, generator=generator) ** 2 * size
    image_index = torch.randint(0, images, (count,), generator=generator)
    return torch.cat([corner, corner + side], dim=1), image_index


NAN = float("nan")
ODD_BOXES = torch.tensor(
    [
        [0.0, 0.0, 68.0, 52.0],  # the whole image
        [0.0, 0.0, 0.0, 0.0],  # a point
        [500.0, 500.0, 900.0, 700.0],  # outside, below and right
        [-50.0, -40.0, -30.0, -20.0],  # outside, above and left
        [40.0, 30.0, 20.0, 10.0],  # inverted
        [40.0, 10.0, 20.0, 30.0],  # inverted in x
        [16.0, 16.0, 32.0, 32.0],  # on the borders of cells
        [-9.0, 5.0, 9.0, 30.0],  # over the left border
        [0.0, 0.0, 1e9, 1e9],  # huge
        [3.0, NAN, 20.0, 20.0],
    ]
)
ODD_IMAGES = torch.arange(len(ODD_BOXES)) % 2


def leaf(tensor):
    """A copy that collects a gradient."""
    return tensor.detach().clone().requires_grad_()
