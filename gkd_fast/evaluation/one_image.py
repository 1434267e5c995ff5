"""Detections in one image of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkd_fast.evaluation.resizing import Rule, resized


@torch.no_grad()
def detect_image(
    model: nn.Module,
    image: Tensor,
    *,
    short_side: int,
    long_side: int,
    score: float = 0.0,
    rule: Rule = "antialiased",
) -> dict[str, Tensor]:
    """Run a torchvision detector, in evaluation mode, on one image.

    Args:
        model: the detector.
        image: uint8 [3,H,W].
        short_side, long_side: to which the image is resized, in pixels, as it was for training.
        score: least score of a detection.
        rule: of resizing.

    Returns:
        boxes float32 [n,4] x1 y1 x2 y2 in pixels of `image`, each with an area, scores [n], labels int64 [n] (from 1),
        best first, on the CPU.
    """
    height, width = image.shape[-2:]
    sample = resized(image, rule, short_side=short_side, long_side=long_side)
    (output,) = model([sample.to(next(model.parameters()).device)])
    scale = torch.tensor([width / sample.shape[-1], height / sample.shape[-2]]).repeat(2)
    boxes, scores, labels = (output[name].cpu() for name in ("boxes", "scores", "labels"))
    keep = (scores >= score) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {"boxes": boxes[keep].float() * scale, "scores": scores[keep].float(), "labels": labels[keep]}
