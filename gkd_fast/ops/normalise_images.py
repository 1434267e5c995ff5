"""Images of bytes as one batch of normalised pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.ops._checks import check_same_device
from gkd_fast.ops._dispatch import backend_for
from gkd_fast.ops._library import define


@torch.no_grad()
def normalise_images(images: Sequence[Tensor], values: Tensor, size: tuple[int, int]) -> Tensor:
    """One padded batch in channels_last, in which every byte stands for a number of its colour.

    The CPU has a kernel; a GPU takes torch's.

    Args:
        images: uint8 [3,H,W], of several sizes.
        values: float32 [3,256], of the bytes of each colour.
        size: height and width of the batch, which no image exceeds; 0 beside an image.

    Returns:
        float32 [N,3,height,width].

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or an image that is too large.
    """
    for number, image in enumerate(images):
        if image.dtype != torch.uint8:
            raise TypeError(f"images[{number}]: expected torch.uint8, got {image.dtype}")
        if image.dim() != 3 or len(image) != 3 or any(o > p for o, p in zip(image.shape[1:], size, strict=True)):
            expected = f"[3,H,W] with H and W up to {tuple(size)}"
            raise ValueError(f"images[{number}]: expected shape {expected}, got {tuple(image.shape)}")
        check_same_device(values=values, **{f"images[{number}]": image})
    if not images:
        raise ValueError("images: expected at least one, got none")
    if values.shape != (3, 256) or values.dtype != torch.float32:
        raise ValueError(f"values: expected float32 [3,256], got {values.dtype} {tuple(values.shape)}")
    height, width = size
    if backend_for("normalise_images", values.device, ("cpu", "reference")) == "cpu":
        return _normalise(list(images), values, height, width)
    found = [torch.stack([row[plane.long()] for row, plane in zip(values, image, strict=True)]) for image in images]
    padded = [F.pad(f, (0, width - f.shape[2], 0, height - f.shape[1])) for f in found]
    return torch.stack(padded).contiguous(memory_format=torch.channels_last)


def _fake(images: list[Tensor], values: Tensor, height: int, width: int) -> Tensor:
    return values.new_empty((len(images), height, width, 3)).permute(0, 3, 1, 2)


_normalise = define("normalise_images(Tensor[] images, Tensor values, int height, int width) -> Tensor", _fake)
