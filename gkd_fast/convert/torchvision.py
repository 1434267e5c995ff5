"""torchvision's own detectors by file: its published COCO checkpoints, and what users trained with its builders."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet

from gkd_fast.convert.recognition import SUPPORTED, Recognised
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.build import WITHOUT_EPSILON, select_outputs
from gkd_fast.detectors.conventions import Conventions
from gkd_fast.errors import InputError

BUILDERS = {
    "faster_rcnn": ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"),
    "retinanet": ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"),
}
_SMALLER = "fasterrcnn_mobilenet_v3_large_320_fpn"  # the same weights' shapes, other proposals
_SMALLER_SIDE = 320
_COCO_OUTPUTS = 91


def torchvision_detector(
    found: Recognised, classes: tuple[str, ...], short_side: int | None, epsilon: str, origin: str
) -> tuple[DetectorSpec, tuple[str, ...], FasterRCNN | RetinaNet, tuple[str, ...]]:
    """The specification, the classes, the detector with the weights, and what was taken for granted.

    Args:
        found: the weights.
        classes: names of the labels 1, 2, ...; empty: COCO's, of 91 outputs.
        short_side: that is asked for, in pixels; None: 800.
        epsilon: of the backbone's normalisation: ``default`` (1e-5), ``none``; ``auto``: none in published networks.
        origin: of the weights, for messages.

    Raises:
        InputError: for a detector of none of torchvision's builders, and outputs without names.
    """
    state = {name: value for name, value in found.state.items() if not name.endswith("num_batches_tracked")}
    builder, outputs = _builder(state, found.detector, origin)
    names, rows, notes = _outputs(classes, outputs, origin)
    # Unfrozen normalisation counts its batches, and always has an epsilon.
    frozen = not any(name.endswith("num_batches_tracked") for name in found.state)
    open_question = builder in WITHOUT_EPSILON and frozen and epsilon == "auto"
    published = open_question and outputs == _COCO_OUTPUTS
    if open_question and not published:
        notes.append(
            "frozen normalisation with an epsilon of 1e-5 assumed; if the training started from torchvision's COCO_V1, "
            "it has none: --norm-epsilon none"
        )
    if "mobilenet" in builder and short_side == _SMALLER_SIDE:
        builder = _SMALLER
    notes.append(
        f"no configuration in torchvision's files: anchors and thresholds of {builder} assumed"
        + (f" ({_SMALLER} is taken for --short-side 320 --long-side 640)" if "mobilenet" in builder else "")
    )
    conventions = Conventions(resize="torchvision", norm_without_epsilon=published or epsilon == "none")
    spec = DetectorSpec(detector=found.detector, backbone="", builder=builder, conventions=conventions)
    detector = build_detector(spec, len(names))
    counters = {name: value for name, value in detector.state_dict().items() if name.endswith("num_batches_tracked")}
    detector.load_state_dict(select_outputs(state, rows, outputs) | counters)
    return spec, names, detector, tuple(notes)


def _builder(state: dict[str, Tensor], detector: str, origin: str) -> tuple[str, int]:
    """The builder whose network has weights of these names and shapes, and its class outputs."""
    name = "roi_heads.box_predictor.cls_score.bias"
    for builder in BUILDERS[detector]:
        outputs = len(state[name]) if name in state else _anchor_outputs(state)
        with torch.device("meta"):
            model = torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=outputs)
        expected = {n: v.shape for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
        if expected == {n: v.shape for n, v in state.items()}:
            return builder, outputs
    raise InputError(
        f"{origin}: a torchvision {detector} of none of its builders ({', '.join(BUILDERS[detector])}); {SUPPORTED}"
    )


def _anchor_outputs(state: dict[str, Tensor]) -> int:
    logits = state.get("head.classification_head.cls_logits.bias", torch.zeros(0))
    offsets = state.get("head.regression_head.bbox_reg.bias", torch.zeros(4))
    return len(logits) // max(1, len(offsets) // 4)


def _outputs(classes: tuple[str, ...], outputs: int, origin: str) -> tuple[tuple[str, ...], Tensor, list[str]]:
    """The classes' names, the outputs that they stand for, and what was left out."""
    if classes and len(classes) != outputs - 1:
        raise InputError(f"--classes: expected the checkpoint's {outputs - 1} names, got {len(classes)}")
    if classes:
        return classes, torch.arange(outputs), []
    if outputs != _COCO_OUTPUTS:
        raise InputError(f"{origin}: {outputs - 1} classes without names; --classes gives them, labels from 1")
    categories = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    kept = [index for index, name in enumerate(categories) if index and name != "N/A"]
    left = outputs - 1 - len(kept)
    notes = [f"COCO's {len(kept)} classes assumed for {outputs} outputs, {left} of which belong to no class"]
    return tuple(categories[index] for index in kept), torch.tensor([0, *kept]), notes
