"""How RetinaNet's heads start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gkd_fast.detectors.build import DetectorSpec, build_detector


@pytest.mark.parametrize("channels", [32, 256])
def test_maps_come_through_the_towers_in_their_size(channels: int) -> None:
    torch.manual_seed(0)
    head = build_detector(DetectorSpec(detector="retinanet", backbone="resnet18", channels=channels), 3).head
    maps = torch.randn(2, channels, 24, 24)
    for part in (head.classification_head, head.regression_head):
        layers = [layer for layer in part.conv.modules() if isinstance(layer, nn.Conv2d)]
        assert len(layers) == 4
        assert 0.4 < float(part.conv(maps).square().mean().sqrt()) < 2.5  # torchvision's: 0.02 of 256 channels
    scores = head.classification_head(list(maps[None]))
    assert float(scores.sigmoid().mean()) == pytest.approx(0.01, rel=0.5)  # the prior of the focal loss
