"""The operators between a detector's heads and its losses, beside what torchvision does for each image."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou, sigmoid_focal_loss

from bench.measuring.agreement import Result, disagreement
from bench.operators.case import Case, Setting, implementations
from bench.operators.shapes import Shape, make_boxes, make_generator
from bench.operators.work import moved, tensor_bytes
from gkd_fast import ops
from gkd_fast.ops.reference.anchor_losses import anchor_rows

OBJECTS = 20  # boxes of an image
CANDIDATES = 1000  # at most: boxes of an image and level before the suppression, and of an image after it
SAMPLES, POSITIVES = 256, 0.5  # of an image, as a region proposal network draws them
_THRESHOLDS = {"high_threshold": 0.7, "low_threshold": 0.3, "allow_low_quality_matches": True}
_RATIOS = (0.5, 1.0, 2.0)
_ONE_STAGE = 9  # anchors a cell of RetinaNet, on the levels from stride 8 on
_BETA = 1 / 9


def _match_anchors(setting: Setting) -> Case:
    anchors, boxes = _anchors(setting), _objects(setting)
    counts = torch.full((len(boxes),), OBJECTS, device=setting.device)
    matcher = Matcher(*_THRESHOLDS.values())
    results = len(boxes) * len(anchors) * 8
    return Case(
        op="match_anchors",
        detail=f"{_anchors_text(setting.shape, len(anchors))}, {OBJECTS} boxes an image, boxes float32",
        device=setting.device,
        leaves=[],
        implementations=implementations(
            setting.device,
            ops.match_anchors,
            None,
            anchors,
            boxes,
            counts,
            torchvision_call=lambda: (torch.stack([matcher(box_iou(own, anchors)) for own in boxes]),),
            **_THRESHOLDS,
        ),
        work=moved(tensor_bytes([anchors, boxes]) + results),
        compare=partial(disagreement, dtype=torch.float32),
    )


def _encode_boxes(setting: Setting) -> Case:
    anchors, boxes, matched = _matched(setting)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def theirs() -> tuple[Tensor]:
        own = [of_image[match.clamp(min=0)] for of_image, match in zip(boxes, matched, strict=True)]
        return (torch.stack(coder.encode(own, [anchors] * len(own))),)

    def compare(result: Result, truth: Result) -> str | None:
        taken = matched >= 0  # of the others torchvision encodes some box
        found, expected = (Result([r.outputs[0][taken]], []) for r in (result, truth))
        return disagreement(found, expected, torch.float32)

    return Case(
        op="encode_boxes",
        detail=f"{_anchors_text(setting.shape, len(anchors))}, {OBJECTS} boxes an image, boxes float32",
        device=setting.device,
        leaves=[],
        implementations=implementations(
            setting.device, ops.encode_boxes, None, anchors, boxes, matched, torchvision_call=theirs
        ),
        work=moved(tensor_bytes([anchors, boxes, matched]) + 16 * matched.numel()),
        compare=compare,
    )


def _sample_balanced(setting: Setting) -> Case:
    anchors, _, matched = _matched(setting)
    seeds = torch.arange(len(matched), device=setting.device)
    sampler = BalancedPositiveNegativeSampler(SAMPLES, POSITIVES)

    def theirs() -> tuple[Tensor]:
        kinds = [(own >= 0).long() - (own == -2).long() for own in matched]  # 1, 0, -1: positive, negative, neither
        drawn = [torch.stack(masks).bool().any(0) for masks in zip(*sampler(kinds), strict=True)]
        return (matched.where(torch.stack(drawn), -2),)

    def compare(result: Result, truth: Result) -> str | None:
        found, expected = ([(r.outputs[-1] >= 0).sum(1), (r.outputs[-1] == -1).sum(1)] for r in (result, truth))
        return disagreement(Result(found, []), Result(expected, []), torch.float32)

    return Case(
        op="sample_balanced",
        detail=f"{_anchors_text(setting.shape, len(anchors))}, {SAMPLES} of them; only their numbers are compared",
        device=setting.device,
        leaves=[],
        implementations=implementations(
            setting.device,
            ops.sample_balanced,
            None,
            matched,
            seeds,
            SAMPLES,
            positive_fraction=POSITIVES,
            torchvision_call=theirs,
        ),
        work=moved(2 * tensor_bytes([matched])),
        compare=compare,
    )


def _batched_nms(setting: Setting) -> Case:
    shape = setting.shape
    most = min(CANDIDATES, shape.rois)
    boxes, scores, levels = (value.to(setting.device) for value in _candidates(shape, most))

    def theirs() -> tuple[Tensor, Tensor]:
        kept = [batched_nms(*own, 0.7)[:most] for own in zip(boxes, scores, levels, strict=True)]
        padded = torch.stack([F.pad(own, (0, most - len(own)), value=-1) for own in kept])
        return padded, torch.tensor([len(own) for own in kept], device=setting.device)

    found = implementations(
        setting.device,
        ops.batched_nms,
        None,
        boxes,
        scores,
        levels,
        0.7,
        most=most,
        torchvision_call=theirs,
    )
    return Case(
        op="batched_nms",
        detail=f"{shape.images} images, {shape.levels} levels of {most} boxes, {most} kept, boxes float32",
        device=setting.device,
        leaves=[],
        # The reference takes one box after another: its graph would hold all of them.
        implementations=[implementation for implementation in found if implementation.name != "compiled"],
        work=moved(tensor_bytes([boxes, scores, levels])),
        compare=partial(disagreement, dtype=torch.float32),
    )


def _sigmoid_focal_loss(setting: Setting) -> Case:
    shape, generator = setting.shape, make_generator()
    maps = _predictions(setting, shape.classes, generator)
    matched = _drawn_matches(maps, shape.classes, generator)
    labels = torch.randint(shape.classes, (shape.images, OBJECTS), generator=generator).to(setting.device)
    weight = _per_object(matched)

    def theirs() -> tuple[Tensor]:
        rows = torch.cat(anchor_rows(maps, shape.classes), 1)
        losses = []
        for own, match, label in zip(rows, matched, labels, strict=True):
            positive = match >= 0
            target = torch.zeros_like(own)
            target[positive, label[match[positive]]] = 1.0
            counts = match != -2
            losses.append(sigmoid_focal_loss(own[counts], target[counts], reduction="sum") / positive.sum())
        return (sum(losses) / len(losses),)

    return Case(
        op="sigmoid_focal_loss",
        detail=f"{_predictions_text(shape)}, {shape.classes} classes",
        device=setting.device,
        leaves=maps,
        implementations=implementations(
            setting.device,
            ops.sigmoid_focal_loss,
            None,
            maps,
            matched,
            labels,
            weight,
            classes=shape.classes,
            torchvision_call=theirs,
        ),
        work=moved(2 * tensor_bytes(maps) + tensor_bytes([matched])),
        compare=partial(disagreement, dtype=setting.dtype),
    )


def _smooth_l1_loss(setting: Setting) -> Case:
    shape, generator = setting.shape, make_generator()
    maps = _predictions(setting, 4, generator)
    matched = _drawn_matches(maps, 4, generator)
    targets = torch.randn(*matched.shape, 4, generator=generator).to(setting.device)
    weight = _per_object(matched)

    def theirs() -> tuple[Tensor]:
        rows = torch.cat(anchor_rows(maps, 4), 1)
        losses = []
        for own, match, target in zip(rows, matched, targets, strict=True):
            positive = torch.where(match >= 0)[0]
            distance = F.smooth_l1_loss(own[positive], target[positive].to(own.dtype), beta=_BETA, reduction="sum")
            losses.append(distance / len(positive))
        return (sum(losses) / len(losses),)

    return Case(
        op="smooth_l1_loss",
        detail=_predictions_text(shape),
        device=setting.device,
        leaves=maps,
        implementations=implementations(
            setting.device,
            ops.smooth_l1_loss,
            None,
            maps,
            matched,
            targets,
            weight,
            beta=_BETA,
            torchvision_call=theirs,
        ),
        # Every gradient is written; of the offsets only the few that are matched are read.
        work=moved(tensor_bytes(maps) + tensor_bytes([matched])),
        compare=partial(disagreement, dtype=setting.dtype),
    )


def _anchors(setting: Setting) -> Tensor:
    """[A,4] of a two-stage detector: three a cell, on every level."""
    shape = setting.shape
    generator = AnchorGenerator(tuple((8 * stride,) for stride in shape.strides), (_RATIOS,) * shape.levels)
    blank = torch.zeros(())
    image = ImageList(blank.expand(1, 3, shape.height, shape.width), [(shape.height, shape.width)])
    return generator(image, [blank.expand(1, 1, *size) for size in shape.sizes])[0].to(setting.device)


def _objects(setting: Setting) -> Tensor:
    """Ground truth [N,OBJECTS,4]."""
    boxes, _ = make_boxes(setting.shape, setting.shape.images * OBJECTS, make_generator())
    return boxes.view(setting.shape.images, OBJECTS, 4).to(setting.device)


def _matched(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors [A,4], ground truth [N,OBJECTS,4], and their matches [N,A]."""
    anchors, boxes = _anchors(setting), _objects(setting)
    counts = torch.full((len(boxes),), OBJECTS, device=setting.device)
    return anchors, boxes, ops.match_anchors(anchors, boxes, counts, **_THRESHOLDS)


def _candidates(shape: Shape, of_level: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N,K,4] that crowd around objects, scores [N,K] and levels [N,K], so many of each level.

    Corners are whole numbers, which torchvision's moving apart of small problems' groups does not round.
    """
    generator, count = make_generator(), shape.levels * of_level
    seeds = make_boxes(shape, shape.images * 10 * OBJECTS, generator)[0].view(shape.images, -1, 4)
    near = torch.randint(seeds.shape[1], (shape.images, count, 1), generator=generator).expand(-1, -1, 4)
    boxes = seeds.gather(1, near)
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    boxes = (boxes + 0.15 * sides * torch.randn(boxes.shape, generator=generator)).round()
    boxes = torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), boxes[..., 2:].maximum(boxes[..., :2])], 2)
    levels = torch.arange(count).expand(shape.images, -1) // of_level
    return boxes, torch.rand(shape.images, count, generator=generator), levels.contiguous()


def _predictions(setting: Setting, values: int, generator: torch.Generator) -> list[Tensor]:
    """L maps [N,9*values,H_l,W_l] of a one-stage detector."""
    shape = setting.shape
    channels = _ONE_STAGE * values
    return [
        setting.leaf(torch.randn(shape.images, channels, *size, generator=generator) - 3) for size in shape.sizes[1:]
    ]


def _drawn_matches(maps: list[Tensor], values: int, generator: torch.Generator) -> Tensor:
    """Matches [N,A]: of a hundred anchors one has a box and two are left out."""
    anchors = sum(level[0].numel() for level in maps) // values
    kind = torch.rand(len(maps[0]), anchors, generator=generator)
    number = torch.randint(OBJECTS, kind.shape, generator=generator)
    return torch.where(kind < 0.01, number, torch.where(kind < 0.03, -2, -1)).to(maps[0].device)


def _per_object(matched: Tensor) -> Tensor:
    """[N] 1 / (matched anchors of the image, images)."""
    return (len(matched) * (matched >= 0).sum(1)).reciprocal()


def _anchors_text(shape: Shape, anchors: int) -> str:
    return f"{shape.images} images of {shape.height}x{shape.width}, {anchors} anchors"


def _predictions_text(shape: Shape) -> str:
    anchors = _ONE_STAGE * sum(height * width for height, width in shape.sizes[1:])
    return f"{shape.images} images of {shape.height}x{shape.width}, {anchors} anchors on {shape.levels - 1} levels"


DETECTION = {
    "match_anchors": _match_anchors,
    "encode_boxes": _encode_boxes,
    "sample_balanced": _sample_balanced,
    "batched_nms": _batched_nms,
    "sigmoid_focal_loss": _sigmoid_focal_loss,
    "smooth_l1_loss": _smooth_l1_loss,
}
