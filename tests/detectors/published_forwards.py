"""Inference of mmdet's and detectron2's Faster R-CNN and RetinaNet, restated from their sources in plain functions.

Weights are asked for by the libraries' own names and drawn where they are not known yet, so that running a forward
also writes the state dict that the library would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

RATIOS = (0.5, 1.0, 2.0)
Detections = tuple[Tensor, Tensor, Tensor]


@dataclass
class Weights:
    """float64 weights by name, drawn on first use."""

    state: dict[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __call__(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        if name not in self.state:
            self.state[name] = mean + scale * torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return self.state[name]

    def conv(
        self, x: Tensor, name: str, out: int, kernel: int, *, stride: int = 1, bias: bool = True, scale: float = 1.0,
        shift: float = 0.0, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        def apply(weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, None, stride, kernel // 2, groups=groups)

        y = apply(self._scaled(f"{name}.weight", (out, x.shape[1] // groups, kernel, kernel), apply, scale))
        return y + self(f"{name}.bias", out, scale=0.1, mean=shift)[:, None, None] if bias else y

    def linear(self, x: Tensor, name: str, out: int, *, scale: float = 1.0) -> Tensor:
        weight = self._scaled(f"{name}.weight", (out, x.shape[1]), lambda weight: x @ weight.T, scale)
        return x @ weight.T + self(f"{name}.bias", out, scale=0.1)

    def _scaled(self, name: str, shape: tuple[int, ...], apply: Callable[[Tensor], Tensor], scale: float) -> Tensor:
        """Weights that give outputs of the deviation `scale` where they are first used."""
        if name not in self.state:
            drawn = self(name, *shape)
            self.state[name] = drawn * scale / apply(drawn).std(correction=0).clamp(min=1e-6)
        return self.state[name]

    def norm(self, x: Tensor, name: str, *, gain: float = 1.0) -> Tensor:
        channels = x.shape[1]
        weight = self(f"{name}.weight", channels, scale=0.1, mean=gain)
        bias, mean = self(f"{name}.bias", channels, scale=0.1), self(f"{name}.running_mean", channels, scale=0.1)
        if f"{name}.running_var" not in self.state:
            self.state[f"{name}.running_var"] = torch.rand(channels, generator=self.generator, dtype=torch.float64) + 1
        variance = self.state[f"{name}.running_var"]
        at = (None, slice(None), None, None)
        return (x - mean[at]) / torch.sqrt(variance[at] + 1e-5) * weight[at] + bias[at]


@dataclass(frozen=True)
class Network:
    """What varies inside of one library."""

    classes: int = 3
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    bgr: bool = False
    stride_in_1x1: bool = False
    extra_levels: str = "on_input"
    relu_before_extra_convs: bool = False
    groups: int = 1
    base_width: int = 64
    proposals: int = 200
    detections: int = 3000


def prepared(image: Tensor, net: Network) -> Tensor:
    """uint8 RGB [3,H,W] -> normalised and padded to multiples of 32; mean and std in the network's channel order."""
    x = image.double()
    if net.bgr:
        x = x[[2, 1, 0]]
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (net.mean, net.std))
    x = (x - mean) / std
    height, width = x.shape[1:]
    return F.pad(x, (0, -width % 32, 0, -height % 32))[None]


def mmdet_backbone(w: Weights, x: Tensor, net: Network) -> list[Tensor]:
    x = F.relu(w.norm(w.conv(x, "backbone.conv1", 64, 7, stride=2, bias=False), "backbone.bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, count in enumerate(net.blocks):
        for block in range(count):
            name = f"backbone.layer{stage + 1}.{block}"
            names = [(f"{name}.conv{k}", f"{name}.bn{k}") for k in (1, 2, 3)]
            x = _bottleneck(w, x, names, (f"{name}.downsample.0", f"{name}.downsample.1"), stage, block, net)
        maps.append(x)
    return maps


def detectron2_backbone(w: Weights, x: Tensor, net: Network) -> list[Tensor]:
    stem = "backbone.bottom_up.stem.conv1"
    x = F.relu(w.norm(w.conv(x, stem, 64, 7, stride=2, bias=False), f"{stem}.norm"))
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, count in enumerate(net.blocks):
        for block in range(count):
            name = f"backbone.bottom_up.res{stage + 2}.{block}"
            names = [(f"{name}.conv{k}", f"{name}.conv{k}.norm") for k in (1, 2, 3)]
            x = _bottleneck(w, x, names, (f"{name}.shortcut", f"{name}.shortcut.norm"), stage, block, net)
        maps.append(x)
    return maps


def _bottleneck(
    w: Weights, x: Tensor, names: list[tuple[str, str]], shortcut: tuple[str, str], stage: int, block: int, net: Network
) -> Tensor:
    planes = 64 * 2**stage
    width = planes * net.base_width // 64 * net.groups
    stride = 2 if stage and not block else 1
    strides = (stride, 1, 1) if net.stride_in_1x1 else (1, stride, 1)
    identity = x
    for k, (conv, norm) in enumerate(names):
        out, kernel, groups = ((width, 1, 1), (width, 3, net.groups), (4 * planes, 1, 1))[k]
        x = w.conv(x, conv, out, kernel, stride=strides[k], bias=False, groups=groups)
        x = w.norm(x, norm, gain=0.5 if k == 2 else 1.0)
        x = F.relu(x) if k < 2 else x
    if not block:
        identity = w.norm(w.conv(identity, shortcut[0], 4 * planes, 1, stride=stride, bias=False), shortcut[1])
    return F.relu(x + identity)


def mmdet_neck(w: Weights, maps: list[Tensor], net: Network, *, start: int) -> list[Tensor]:
    laterals = [w.conv(x, f"neck.lateral_convs.{i}.conv", 256, 1) for i, x in enumerate(maps[start:])]
    for i in range(len(laterals) - 1, 0, -1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[2:], mode="nearest")
    outs = [w.conv(x, f"neck.fpn_convs.{i}.conv", 256, 3) for i, x in enumerate(laterals)]
    if start == 0:
        return [*outs, F.max_pool2d(outs[-1], 1, stride=2)]
    source = maps[-1] if net.extra_levels == "on_input" else outs[-1]
    p6 = w.conv(source, "neck.fpn_convs.3.conv", 256, 3, stride=2)
    p7 = w.conv(
        F.relu(p6) if net.relu_before_extra_convs else p6, "neck.fpn_convs.4.conv", 256, 3, stride=2, scale=20.0
    )
    return [*outs, p6, p7]


def detectron2_neck(w: Weights, maps: list[Tensor], *, start: int) -> list[Tensor]:
    above, outs = None, []
    for i in range(3, start - 1, -1):
        lateral = w.conv(maps[i], f"backbone.fpn_lateral{i + 2}", 256, 1)
        above = lateral if above is None else lateral + F.interpolate(above, scale_factor=2.0, mode="nearest")
        outs.insert(0, w.conv(above, f"backbone.fpn_output{i + 2}", 256, 3))
    if start == 0:
        return [*outs, F.max_pool2d(outs[-1], kernel_size=1, stride=2, padding=0)]
    p6 = w.conv(maps[-1], "backbone.top_block.p6", 256, 3, stride=2)
    return [*outs, p6, w.conv(F.relu(p6), "backbone.top_block.p7", 256, 3, stride=2, scale=20.0)]


def mmdet_anchors(shape: torch.Size, stride: int, scales: tuple[float, ...]) -> Tensor:
    """AnchorGenerator: scales times base size = stride; all scales of a ratio, then the next ratio; offset 0."""
    cell = []
    for ratio in RATIOS:
        for scale in scales:
            w, h = stride / math.sqrt(ratio) * scale, stride * math.sqrt(ratio) * scale
            cell.append([-w / 2, -h / 2, w / 2, h / 2])
    return _grid(torch.tensor(cell, dtype=torch.float64), shape, stride)


def detectron2_anchors(shape: torch.Size, stride: int, sizes: tuple[float, ...]) -> Tensor:
    """DefaultAnchorGenerator: all ratios of a size, then the next size; offset 0."""
    cell = []
    for size in sizes:
        for ratio in RATIOS:
            w = math.sqrt(size**2 / ratio)
            cell.append([-w / 2, -ratio * w / 2, w / 2, ratio * w / 2])
    return _grid(torch.tensor(cell, dtype=torch.float64), shape, stride)


def _grid(cell: Tensor, shape: torch.Size, stride: int) -> Tensor:
    rows = [
        cell + torch.tensor([x * stride, y * stride] * 2, dtype=torch.float64)
        for y in range(shape[-2])
        for x in range(shape[-1])
    ]
    return torch.cat(rows)


def decoded(boxes: Tensor, offsets: Tensor, stds: tuple[float, ...], *, both: bool) -> Tensor:
    """Offsets [B,4] times their deviations on boxes [B,4]; the log sizes clamped at log(1000/16), below too if both."""
    dx, dy, dw, dh = (offsets * torch.tensor(stds, dtype=torch.float64)).unbind(1)
    limit = math.log(1000 / 16)
    dw, dh = (d.clamp(min=-limit if both else None, max=limit) for d in (dw, dh))
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 + dx * w, (boxes[:, 1] + boxes[:, 3]) / 2 + dy * h
    w, h = w * dw.exp(), h * dh.exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    limits = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
    return torch.minimum(boxes.clamp(min=0), limits)


def by_cell(output: Tensor, values: int) -> Tensor:
    """[1,A*V,H,W] -> [H*W*A,V]."""
    return output[0].permute(1, 2, 0).reshape(-1, values)


def proposals(
    scores: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], size: tuple[int, int], count: int, *, both: bool
) -> Tensor:
    """The best `count` of every level; NMS 0.7 level by level; boxes with an area; the best `count` of all."""
    boxes, values, levels = [], [], []
    for level, (score, offset, own) in enumerate(zip(scores, offsets, anchors, strict=True)):
        score, best = score.sort(descending=True, stable=True)
        best = best[:count]
        boxes.append(clipped(decoded(own[best], offset[best], (1.0, 1.0, 1.0, 1.0), both=both), size))
        values.append(score[:count])
        levels.append(torch.full((len(best),), level))
    box, value, level = torch.cat(boxes), torch.cat(values), torch.cat(levels)
    area = ((box[:, 2:] - box[:, :2]) > 0).all(1)
    box, value, level = box[area], value[area], level[area]
    return box[batched_nms(box, value, level, 0.7)[:count]]


def second_stage(
    maps: list[Tensor], boxes: Tensor, w: Weights, names: tuple[str, str, str, str], classes: int
) -> Detections:
    """RoIAlign (aligned, adaptive samples) from the level of each box, two layers, classes with background last."""
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(torch.log2(scale / 56 + 1e-6)).clamp(0, 3)
    pooled = torch.zeros(len(boxes), 256, 7, 7, dtype=torch.float64)
    for i in range(4):
        own = level == i
        rois = torch.cat([torch.zeros(int(own.sum()), 1, dtype=torch.float64), boxes[own]], 1)
        pooled[own] = roi_align(maps[i], rois, 7, 1 / 2 ** (2 + i), 0, aligned=True)
    x = F.relu(w.linear(pooled.flatten(1), names[0], 1024))
    x = F.relu(w.linear(x, names[1], 1024))
    return w.linear(x, names[2], classes + 1, scale=3.0), w.linear(x, names[3], 4 * classes, scale=2.0), boxes


def two_stage_result(found: Detections, size: tuple[int, int], net: Network, *, both: bool) -> Detections:
    """Score above 0.05, NMS 0.5 class by class, the best of all; without the boxes of no area, as torchvision."""
    logits, offsets, rois = found
    scores = logits.softmax(1)[:, :-1]
    boxes = torch.stack(
        [
            clipped(decoded(rois, offsets[:, 4 * k : 4 * k + 4], (0.1, 0.1, 0.2, 0.2), both=both), size)
            for k in range(net.classes)
        ],
        1,
    )
    row, label = torch.where((scores > 0.05) & (boxes[..., 2:] - boxes[..., :2] >= 1e-2).all(2))
    return _best(boxes[row, label], scores[row, label], label, net.detections)


def one_stage_result(
    logits: list[Tensor],
    offsets: list[Tensor],
    anchors: list[Tensor],
    size: tuple[int, int],
    net: Network,
    *,
    both: bool,
    clip_first: bool,
) -> Detections:
    """Score above 0.05, the best 1000 of every level, NMS 0.5 class by class, the best of all that have an area."""
    boxes, values, labels = [], [], []
    for logit, offset, own in zip(logits, offsets, anchors, strict=True):
        score = logit.sigmoid()
        row, label = torch.where(score > 0.05)
        value, best = score[row, label].sort(descending=True, stable=True)
        row, label = row[best[:1000]], label[best[:1000]]
        boxes.append(decoded(own[row], offset[row], (1.0, 1.0, 1.0, 1.0), both=both))
        values.append(value[:1000])
        labels.append(label)
    box, value, label = torch.cat(boxes), torch.cat(values), torch.cat(labels)
    if clip_first:
        box = clipped(box, size)
        area = ((box[:, 2:] - box[:, :2]) > 0).all(1)
        return _best(box[area], value[area], label[area], net.detections)
    box, value, label = _best(box, value, label, net.detections)
    box = clipped(box, size)
    area = ((box[:, 2:] - box[:, :2]) > 0).all(1)
    return box[area], value[area], label[area]


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, most: int) -> Detections:
    keep = batched_nms(boxes, scores, labels, 0.5)[:most]
    return boxes[keep], scores[keep], labels[keep]


def mmdet_faster_rcnn(w: Weights, image: Tensor, net: Network) -> Detections:
    size = tuple(image.shape[1:])
    maps = mmdet_neck(w, mmdet_backbone(w, prepared(image, net), net), net, start=0)
    hidden = [F.relu(w.conv(x, "rpn_head.rpn_conv", 256, 3)) for x in maps]
    scores = [by_cell(w.conv(x, "rpn_head.rpn_cls", 3, 1, scale=2.0), 1)[:, 0].sigmoid() for x in hidden]
    offsets = [by_cell(w.conv(x, "rpn_head.rpn_reg", 12, 1), 4) for x in hidden]
    anchors = [mmdet_anchors(x.shape, 4 * 2**i, (8.0,)) for i, x in enumerate(maps)]
    boxes = proposals(scores, offsets, anchors, size, net.proposals, both=True)
    head = "roi_head.bbox_head"
    names = (f"{head}.shared_fcs.0", f"{head}.shared_fcs.1", f"{head}.fc_cls", f"{head}.fc_reg")
    return two_stage_result(second_stage(maps, boxes, w, names, net.classes), size, net, both=True)


def detectron2_faster_rcnn(w: Weights, image: Tensor, net: Network) -> Detections:
    size = tuple(image.shape[1:])
    maps = detectron2_neck(w, detectron2_backbone(w, prepared(image, net), net), start=0)
    head = "proposal_generator.rpn_head"
    hidden = [F.relu(w.conv(x, f"{head}.conv", 256, 3)) for x in maps]
    scores = [by_cell(w.conv(x, f"{head}.objectness_logits", 3, 1, scale=2.0), 1)[:, 0] for x in hidden]
    offsets = [by_cell(w.conv(x, f"{head}.anchor_deltas", 12, 1), 4) for x in hidden]
    anchors = [detectron2_anchors(x.shape, 4 * 2**i, (32.0 * 2**i,)) for i, x in enumerate(maps)]
    boxes = proposals(scores, offsets, anchors, size, net.proposals, both=False)
    names = ("roi_heads.box_head.fc1", "roi_heads.box_head.fc2")
    names += ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
    return two_stage_result(second_stage(maps, boxes, w, names, net.classes), size, net, both=False)


def mmdet_retinanet(w: Weights, image: Tensor, net: Network) -> Detections:
    maps = mmdet_neck(w, mmdet_backbone(w, prepared(image, net), net), net, start=1)
    towers = [f"bbox_head.{kind}_convs.{{}}.conv" for kind in ("cls", "reg")]
    logits, offsets = _dense_heads(w, maps, towers, (0, 1, 2, 3), ("bbox_head.retina_cls", "bbox_head.retina_reg"), net)
    octaves = tuple(4 * 2 ** (i / 3) for i in range(3))
    anchors = [mmdet_anchors(x.shape, 8 * 2**i, octaves) for i, x in enumerate(maps)]
    return one_stage_result(logits, offsets, anchors, tuple(image.shape[1:]), net, both=True, clip_first=True)


def detectron2_retinanet(w: Weights, image: Tensor, net: Network) -> Detections:
    maps = detectron2_neck(w, detectron2_backbone(w, prepared(image, net), net), start=1)
    towers = ["head.cls_subnet.{}", "head.bbox_subnet.{}"]
    logits, offsets = _dense_heads(w, maps, towers, (0, 2, 4, 6), ("head.cls_score", "head.bbox_pred"), net)
    sizes = [tuple(x * 2 ** (i / 3) for i in range(3)) for x in (32, 64, 128, 256, 512)]
    anchors = [detectron2_anchors(x.shape, 8 * 2**i, sizes[i]) for i, x in enumerate(maps)]
    return one_stage_result(logits, offsets, anchors, tuple(image.shape[1:]), net, both=False, clip_first=False)


def _dense_heads(
    w: Weights, maps: list[Tensor], towers: list[str], numbers: tuple[int, ...], outputs: tuple[str, str], net: Network
) -> tuple[list[Tensor], list[Tensor]]:
    logits, offsets = [], []
    for x in maps:
        ends = []
        for tower in towers:
            y = x
            for number in numbers:
                y = F.relu(w.conv(y, tower.format(number), 256, 3))
            ends.append(y)
        logits.append(by_cell(w.conv(ends[0], outputs[0], 9 * net.classes, 3, scale=2.0, shift=-2.5), net.classes))
        offsets.append(by_cell(w.conv(ends[1], outputs[1], 36, 3, scale=2.5), 4))
    return logits, offsets


FORWARDS = {
    ("mmdet", "faster_rcnn"): mmdet_faster_rcnn,
    ("mmdet", "retinanet"): mmdet_retinanet,
    ("detectron2", "faster_rcnn"): detectron2_faster_rcnn,
    ("detectron2", "retinanet"): detectron2_retinanet,
}
