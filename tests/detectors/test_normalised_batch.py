"""Batches of images as torchvision's transform makes them, bit for bit, with the gradient of the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from gkd_fast.detectors.build import NormalizeAndPad

STATISTICS = (64, 96, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SIZES = {"one size": [(40, 48), (40, 48)], "several": [(40, 48), (33, 70), (64, 32)], "one image": [(31, 64)]}


class Unresized(GeneralizedRCNNTransform):
    """torchvision's, for images that are resized already."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


def make_images(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES[name]]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_batches_are_torchvisions(name: str, dtype: torch.dtype) -> None:
    images = make_images(name)
    floating = [image.to(torch.float64 if dtype == torch.float64 else torch.float32) / 255 for image in images]
    expected, _ = Unresized(*STATISTICS)(floating)
    found, _ = NormalizeAndPad(*STATISTICS)(images if dtype == torch.uint8 else floating)
    assert found.image_sizes == expected.image_sizes
    assert torch.equal(found.tensors, expected.tensors)


@pytest.mark.parametrize("name", SIZES)
def test_images_get_torchvisions_gradient(name: str) -> None:
    gradients = []
    for transform in (Unresized(*STATISTICS), NormalizeAndPad(*STATISTICS)):
        images = [(image / 255).requires_grad_() for image in make_images(name)]
        transform(images)[0].tensors.square().sum().backward()
        gradients.append([image.grad for image in images])
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-6)
