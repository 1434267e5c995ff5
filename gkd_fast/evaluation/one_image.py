"""Detections in one image of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from gkd_fast.data.transforms import resized_size


@torch.no_grad()
def detect_image(
    model: nn.Module, image: Tensor, *, short_side: int, long_side: int, score: float = 0.0
) -> dict[str, Tensor]:
    """Run a torchvision detector, in evaluation mode, on one image.

    Args:
        model: the detector.
        image: uint8 [3,H,W].
        short_side, long_side: to which the image is resized, in pixels, as it was for training.
        score: least score of a detection.

    Returns:
        boxes float32 [n,4] x1 y1 x2 y2 in pixels of `image`, scores [n], labels int64 [n] (from 1), best first, on
        the CPU.
    """
    height, width = image.shape[-2:]
    resized = resize(
        image, list(resized_size((height, width), short_side=short_side, long_side=long_side)), antialias=True
    )
    device = next(model.parameters()).device
    (output,) = model([resized.to(device).float().div_(255)])
    scale = torch.tensor([width / resized.shape[-1], height / resized.shape[-2]]).repeat(2)
    keep = output["scores"] >= score
    return {
        "boxes": output["boxes"][keep].float().cpu() * scale,
        "scores": output["scores"][keep].float().cpu(),
        "labels": output["labels"][keep].cpu(),
    }
