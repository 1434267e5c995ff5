"""torchvision's FCOS, SSDlite, Faster R-CNN and RetinaNet, in a loop of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import cells
from gkd_fast.integrations.torchvision import Distiller

KINDS = {"fcos": FCOS, "retinanet": RetinaNet, "faster_rcnn": FasterRCNN}
ANCHORS = AnchorGenerator([(16 * 2**level,) for level in range(5)], [(1.0,)] * 5)


def network(kind: str, width: float, classes: int, side: int) -> nn.Module:
    """A detector with random weights, on a MobileNet."""
    if kind == "ssdlite":  # always at 320 pixels
        given = {"weights": None, "weights_backbone": None, "num_classes": classes + 1}
        return ssdlite320_mobilenet_v3_large(width_mult=width, **given).train()
    features = mobilenet_v2(width_mult=width).features
    channels = [features[index].conv[-1].num_features for index in (3, 6, 13)] + [features[18][1].num_features]
    body = BackboneWithFPN(features, {"3": "0", "6": "1", "13": "2", "18": "3"}, channels, round(64 * width))
    given = {"rpn_anchor_generator" if kind == "faster_rcnn" else "anchor_generator": ANCHORS}
    return KINDS[kind](body, num_classes=classes + 1, min_size=side, max_size=side, **given).train()


def targets_of(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    return [{"boxes": b, "labels": c + 1} for b, c in zip(boxes, labels, strict=True)]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    options = cells.options(__doc__, detector=["fcos", "ssdlite", "faster_rcnn", "retinanet"]).parse_args(arguments)
    data, history = cells.load(options), []
    teacher, student = (network(options.detector, w, len(data.classes), options.size) for w in (1.0, 0.5))
    cells.train(
        teacher, lambda net, x, *truth: sum(net(list(x), targets_of(*truth)).values()), data.batches(options.steps)
    )
    # ---- distilling: the student's own loop, and three lines
    distiller = Distiller(teacher, student, data.classes, method=options.method, min_box=8)
    optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], 1e-3)
    for step, (images, boxes, labels) in enumerate(data.batches(options.steps)):
        images, targets = list(images), targets_of(boxes, labels)
        own = sum(student(images, targets).values())
        terms = distiller(images, targets)
        optimizer.zero_grad()
        (own + sum(terms.values())).backward()
        optimizer.step()
        # ----
        history.append(cells.show(step, own, terms))
    return history


if __name__ == "__main__":
    main()
