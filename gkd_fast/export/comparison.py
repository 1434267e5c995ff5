"""Whether two builds of one network detect the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Largest differences between two builds of the same network in float32.
_PIXELS, _SCORE = 0.05, 1e-3

Found = tuple[Tensor, Tensor, Tensor]
"""boxes [n,4] x1 y1 x2 y2 in pixels, scores [n], labels int64 [n]."""
Detect = Callable[[Tensor], Found]


def differences(expected: Found, got: Found) -> str:
    """Which detection lacks an equal one in the other set; empty if none does. The order does not count."""
    for mine, other, verb in ((expected, got, "lacks"), (got, expected, "adds")):
        boxes, scores, labels = other
        for box, score, label in zip(*mine, strict=True):
            near = (boxes - box).abs().amax(1) < _PIXELS if len(boxes) else torch.zeros(0, dtype=torch.bool)
            if not (near & ((scores - score).abs() < _SCORE) & (labels == label)).any():
                corners = ", ".join(f"{side:.1f}" for side in box.tolist())
                return f"{verb} label {int(label)} at [{corners}] of score {float(score):.4f}"
    return ""


def plain_detections(model: torch.nn.Module) -> Detect:
    """The detections of a torchvision detector in one image."""

    @torch.no_grad()
    def detect(image: Tensor) -> Found:
        (output,) = model([image])
        return output["boxes"], output["scores"], output["labels"]

    return detect
