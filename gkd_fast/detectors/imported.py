"""Weights of mmdet's and detectron2's detectors, by torchvision's names and in torchvision's order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from gkd_fast.errors import InputError

Source = Literal["mmdet", "detectron2", "torchvision"]
Rules = list[tuple[str, str]]

_NEVER = -20.0  # logit of an output that has no class: a score of 2e-9

# Names there (regular expressions) and here. The numbers of groups are the same on both sides; `{1-2}` is the second
# group less two.
_MMDET: Rules = [
    (r"backbone\.((?:conv1|bn1|layer\d)\..*)", "backbone.body.{0}"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", "backbone.fpn.inner_blocks.{0}.0.{1}"),
    (r"neck\.fpn_convs\.([0-{top}])\.conv\.(\w+)", "backbone.fpn.layer_blocks.{0}.0.{1}"),
    (r"neck\.fpn_convs\.3\.conv\.(\w+)", "backbone.fpn.extra_blocks.p6.{0}"),
    (r"neck\.fpn_convs\.4\.conv\.(\w+)", "backbone.fpn.extra_blocks.p7.{0}"),
    (r"rpn_head\.rpn_conv\.(\w+)", "rpn.head.conv.0.0.{0}"),
    (r"rpn_head\.rpn_cls\.(\w+)", "rpn.head.cls_logits.{0}"),
    (r"rpn_head\.rpn_reg\.(\w+)", "rpn.head.bbox_pred.{0}"),
    (r"roi_head\.bbox_head\.shared_fcs\.0\.(\w+)", "roi_heads.box_head.fc6.{0}"),
    (r"roi_head\.bbox_head\.shared_fcs\.1\.(\w+)", "roi_heads.box_head.fc7.{0}"),
    (r"roi_head\.bbox_head\.fc_cls\.(\w+)", "roi_heads.box_predictor.cls_score.{0}"),
    (r"roi_head\.bbox_head\.fc_reg\.(\w+)", "roi_heads.box_predictor.bbox_pred.{0}"),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.(\w+)", "head.classification_head.conv.{0}.0.{1}"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.(\w+)", "head.regression_head.conv.{0}.0.{1}"),
    (r"bbox_head\.retina_cls\.(\w+)", "head.classification_head.cls_logits.{0}"),
    (r"bbox_head\.retina_reg\.(\w+)", "head.regression_head.bbox_reg.{0}"),
]
_DETECTRON2: Rules = [
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", "backbone.body.bn1.{0}"),
    (r"backbone\.bottom_up\.stem\.conv1\.(\w+)", "backbone.body.conv1.{0}"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)", "backbone.body.layer{0-1}.{1}.bn{2}.{3}"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.(\w+)", "backbone.body.layer{0-1}.{1}.conv{2}.{3}"),
    (r"backbone\.bottom_up\.res(\d)\.0\.shortcut\.norm\.(\w+)", "backbone.body.layer{0-1}.0.downsample.1.{1}"),
    (r"backbone\.bottom_up\.res(\d)\.0\.shortcut\.(\w+)", "backbone.body.layer{0-1}.0.downsample.0.{1}"),
    (r"backbone\.fpn_lateral(\d)\.(\w+)", "backbone.fpn.inner_blocks.{0-first}.0.{1}"),
    (r"backbone\.fpn_output(\d)\.(\w+)", "backbone.fpn.layer_blocks.{0-first}.0.{1}"),
    (r"backbone\.top_block\.(p[67])\.(\w+)", "backbone.fpn.extra_blocks.{0}.{1}"),
    (r"proposal_generator\.rpn_head\.conv\.(\w+)", "rpn.head.conv.0.0.{0}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", "rpn.head.cls_logits.{0}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", "rpn.head.bbox_pred.{0}"),
    (r"roi_heads\.box_head\.fc1\.(\w+)", "roi_heads.box_head.fc6.{0}"),
    (r"roi_heads\.box_head\.fc2\.(\w+)", "roi_heads.box_head.fc7.{0}"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(\w+)", "roi_heads.box_predictor.{0}.{1}"),
    (r"head\.cls_subnet\.([0246])\.(\w+)", "head.classification_head.conv.{0/2}.0.{1}"),
    (r"head\.bbox_subnet\.([0246])\.(\w+)", "head.regression_head.conv.{0/2}.0.{1}"),
    (r"head\.cls_score\.(\w+)", "head.classification_head.cls_logits.{0}"),
    (r"head\.bbox_pred\.(\w+)", "head.regression_head.bbox_reg.{0}"),
]
_RULES = {"mmdet": _MMDET, "detectron2": _DETECTRON2}
_NO_WEIGHTS = re.compile(
    r".*num_batches_tracked|pixel_(mean|std)|.*anchor_generator\.cell_anchors\.\d|.*head\.loss_\w+\.\w+"
)
_ONLY = {"faster_rcnn": ("rpn.", "roi_heads."), "retinanet": ("head.", "backbone.fpn.extra_blocks.")}
_PER_ANCHOR = (
    "rpn.head.cls_logits",
    "rpn.head.bbox_pred",
    "head.classification_head.cls_logits",
    "head.regression_head.bbox_reg",
)


@dataclass(frozen=True)
class AnchorOutputs:
    """How the outputs of a cell are ordered.

    Attributes:
        sizes, ratios: anchors of a cell by size and by shape.
        by_size: all ratios of a size stand together; else all sizes of a ratio, as here.
    """

    sizes: int
    ratios: int
    by_size: bool


def imported_state(
    state: dict[str, Tensor],
    source: Source,
    detector: str,
    expected: dict[str, torch.Size],
    anchors: AnchorOutputs,
    origin: str,
) -> dict[str, Tensor]:
    """A state dict for `build_detector`, from that of another library.

    Args:
        state: weights by the other library's names.
        source: the library.
        detector: ``faster_rcnn`` or ``retinanet``.
        expected: names and shapes of the detector to fill.
        anchors: order of the outputs of a cell.
        origin: of the weights, for messages.

    Returns:
        The weights by torchvision's names: background first, anchors ratio by ratio, an output of its own for the
        background's boxes (zeros) and for RetinaNet's class 0 (a score of nothing).

    Raises:
        InputError: one line with the number of names that are unknown, missing, or of another shape, and the first.
    """
    renamed = renamed_state(state, source, detector)
    unknown = [name for name in state if not _NO_WEIGHTS.fullmatch(name) and _renamed(name, source, detector) is None]
    unknown += [name for name in renamed if name not in expected]
    missing = [name for name in expected if name not in renamed]
    lists = (("more", unknown), ("lacks (named as here)", missing))
    if complaint := [f"{what} {_counted(names)}" for what, names in lists if names]:
        raise InputError(f"{origin}: not the weights of a {source} {detector} of this backbone: {'; '.join(complaint)}")
    ordered = {name: _ordered(name, value, anchors, expected[name]) for name, value in renamed.items()}
    wrong = [
        f"{name} is {list(value.shape)}, expected {list(expected[name])}"
        for name, value in ordered.items()
        if value.shape != expected[name]
    ]
    if wrong:
        raise InputError(f"{origin}: {len(wrong)} weights of other shapes, the first {wrong[0]}")
    return ordered


def renamed_state(state: dict[str, Tensor], source: Source, detector: str) -> dict[str, Tensor]:
    """The weights that have a name here, by it; in their own order still."""
    weights = {name: value for name, value in state.items() if not _NO_WEIGHTS.fullmatch(name)}
    pairs = ((_renamed(name, source, detector), value) for name, value in weights.items())
    return {name: value for name, value in pairs if name is not None}


def extra_levels(renamed: dict[str, Tensor]) -> Literal["p5", "c5"]:
    """The map that RetinaNet's sixth level is computed from, by the channels of its convolution's input."""
    weight = renamed.get("backbone.fpn.extra_blocks.p6.weight")
    return "p5" if weight is not None and weight.shape[1] == weight.shape[0] else "c5"


def _counted(names: list[str]) -> str:
    more = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def _renamed(name: str, source: Source, detector: str) -> str | None:
    first = {"faster_rcnn": 2, "retinanet": 3}[detector]
    for pattern, target in _RULES[source]:
        match = re.fullmatch(pattern.replace("{top}", str(5 - first)), name)
        if match and _belongs(target, detector):
            return re.sub(r"\{(\d)([-/]\w+)?\}", partial(_group, match, first), target)
    return None


def _belongs(target: str, detector: str) -> bool:
    others = (prefix for kind, prefixes in _ONLY.items() if kind != detector for prefix in prefixes)
    return not target.startswith(tuple(others))


def _group(match: re.Match[str], first: int, place: re.Match[str]) -> str:
    value, change = match[int(place[1]) + 1], place[2]
    if not change:
        return value
    by = first if change[1:] == "first" else int(change[1:])
    return str(int(value) - by if change[0] == "-" else int(value) // by)


def _ordered(name: str, value: Tensor, anchors: AnchorOutputs, shape: torch.Size) -> Tensor:
    if name.startswith("roi_heads.box_predictor.cls_score"):
        return value.roll(1, 0)  # background last -> first
    if name.startswith("roi_heads.box_predictor.bbox_pred"):
        if len(value) == 4 != shape[0]:  # one box for all classes
            return value.repeat(shape[0] // 4, *[1] * (value.dim() - 1))
        return torch.cat([torch.zeros_like(value[:4]), value])
    if not name.startswith(_PER_ANCHOR):
        return value
    per_anchor = value.unflatten(0, (anchors.sizes * anchors.ratios, -1))
    if anchors.by_size:
        per_anchor = per_anchor.unflatten(0, (anchors.sizes, anchors.ratios)).transpose(0, 1).flatten(0, 1)
    if "head.classification_head.cls_logits" in name:
        nothing = torch.full_like(per_anchor[:, :1], _NEVER if name.endswith("bias") else 0.0)
        per_anchor = torch.cat([nothing, per_anchor], 1)
    return per_anchor.flatten(0, 1)
