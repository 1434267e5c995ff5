"""Anchors, boxes and predictions that the tests of the operators on anchors share."""

import torch

from gkd_fast.ops.reference.anchor_losses import anchor_rows

INF = float("inf")
NAN = float("nan")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grid_anchors(*, rows=9, columns=11, stride=8, sides=(12.0, 24.0)):
    """Anchors [A,4] cell by cell, as a detector has them: many of equal IoU with a box."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = torch.stack([x, y], 2).flatten(0, 1)[:, None] * float(stride)
    half = torch.tensor(sides)[:, None].expand(-1, 2) / 2
    return torch.cat([centre - half, centre + half], 2).flatten(0, 1)


def random_boxes(*shape, extent=90.0, seed=1, whole=True):
    """Boxes [*shape,4]; with whole-numbered corners, ties are frequent."""
    g = generator(seed)
    corner = torch.rand(*shape, 2, generator=g) * extent
    boxes = torch.cat([corner, corner + torch.rand(*shape, 2, generator=g) * extent / 2 + 1], -1)
    return boxes.round() if whole else boxes


ODD = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],
        [40.0, 30.0, 20.0, 10.0],
        [-50.0, -40.0, -30.0, -20.0],
        [500.0, 500.0, 900.0, 700.0],
        [0.0, 0.0, INF, INF],
        [3.0, NAN, 20.0, 20.0],
        [0.0, 0.0, 1e30, 1e30],
    ]
)


def predictions(values, *, images=2, anchors=(2, 3, 1), sizes=((5, 7), (3, 2), (1, 1)), dtype=torch.float32, seed=2):
    """L maps [N,A_l*V,H,W], and the number of anchors of an image."""
    g = generator(seed)
    maps = [
        (torch.randn(images, count * values, *size, generator=g, dtype=torch.float64) * 3).to(dtype)
        for count, size in zip(anchors, sizes, strict=True)
    ]
    return maps, sum(count * size[0] * size[1] for count, size in zip(anchors, sizes, strict=True))


def matches(images, anchors, most, seed=3):
    """Matches [N,A] of all kinds."""
    return torch.randint(-2, max(most, 1), (images, anchors), generator=generator(seed)).clamp(max=most - 1)


__all__ = ["INF", "NAN", "ODD", "anchor_rows", "generator", "grid_anchors", "matches", "predictions", "random_boxes"]
