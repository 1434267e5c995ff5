"""The lines of Python that build a trained detector from torchvision alone."""

from __future__ import annotations

from dataclasses import asdict

import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from gkd_fast.detectors.build import DetectorSpec
from gkd_fast.detectors.conventions import TORCHVISION
from gkd_fast.errors import InputError

_HEAD = """from collections import OrderedDict

import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

"""

_FREEZE = """
def freeze_norm(module):
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            freeze_norm(child)


freeze_norm(body)"""


def torchvision_recipe(spec: DetectorSpec, model: FasterRCNN | RetinaNet, *, min_size: int, max_size: int) -> str:
    """Python that imports torch and torchvision alone and leaves a `detector` for the model's state dict.

    Args:
        spec: of the model.
        model: as built from the specification.
        min_size, max_size: short side, and longest long side, to which the detector resizes its images, in pixels.

    Raises:
        InputError: for a backbone that torchvision's own pyramid does not take, and for conventions of input, boxes,
            anchors or RoIAlign that its detectors have no setting for.
    """
    values = asdict(spec.conventions)
    different = [name for name, own in values.items() if own != getattr(TORCHVISION, name) and name != "resize"]
    if different:
        raise InputError(
            "--format: expected torch_export or onnx for a detector that differs from torchvision's in "
            f"{', '.join(different)}; got torchvision"
        )
    sides = [f"min_size={min_size}", f"max_size={max_size}"]
    two_stage = isinstance(model, FasterRCNN)
    head = model.roi_heads.box_predictor.cls_score if two_stage else model.head.classification_head
    outputs = head.out_features if two_stage else head.num_classes
    if spec.builder:
        weights = ["weights=None", "weights_backbone=None"]
        arguments = [repr(spec.builder), *weights, f"num_classes={outputs}", *sides]
        return f"import torchvision\n\n{_call('detector = torchvision.models.get_model', arguments)}\n"
    detector = _faster_rcnn(model, outputs) if two_stage else _retinanet(model, outputs)
    kind = "FasterRCNN" if two_stage else "RetinaNet"
    return _HEAD + _backbone(spec, model) + _call(f"detector = {kind}", [*detector, *sides]) + "\n"


def _backbone(spec: DetectorSpec, model: FasterRCNN | RetinaNet) -> str:
    backbone = model.backbone
    if type(backbone) is not BackboneWithFPN:
        raise InputError(f"--format: torchvision's own pyramid does not take this {spec.backbone}; export it otherwise")
    options = {} if spec.width == 1.0 else {"width_mult": spec.width}
    classifier = torchvision.models.get_model(spec.backbone, **options)
    lines = [_call("body = torchvision.models.get_model", [repr(spec.backbone), *_keywords(**options)])]
    nested = [name for name in ("features", "layers") if isinstance(getattr(classifier, name, None), nn.Sequential)]
    if nested:
        lines.append(f"body = body.{nested[0]}")
    elif hasattr(classifier, "trunk_output"):
        lines.append('body = nn.Sequential(OrderedDict([("stem", body.stem), *body.trunk_output.named_children()]))')
    if spec.freeze_norm:
        lines.append(_FREEZE)
    channels = backbone.out_channels
    arguments = [
        "body",
        f"return_layers={dict(backbone.body.return_layers)}",
        f"in_channels_list={[block[0].in_channels for block in backbone.fpn.inner_blocks]}",
        f"out_channels={channels}",
        "extra_blocks="
        + ("LastLevelMaxPool()" if isinstance(model, FasterRCNN) else f"LastLevelP6P7({channels}, {channels})"),
    ]
    if spec.pyramid_norm:
        arguments.append("norm_layer=nn.BatchNorm2d")
    lines.append(_call("backbone = BackboneWithFPN", arguments))
    return "\n".join(lines) + "\n"


def _faster_rcnn(model: FasterRCNN, outputs: int) -> list[str]:
    rpn, heads = model.rpn, model.roi_heads
    fc = heads.box_head.fc6
    return [
        "backbone",
        f"rpn_anchor_generator={_anchors(rpn.anchor_generator)}",
        f"box_head=TwoMLPHead({fc.in_features}, {fc.out_features})",
        f"box_predictor=FastRCNNPredictor({fc.out_features}, {outputs})",
        *_keywords(
            rpn_pre_nms_top_n_train=rpn._pre_nms_top_n["training"],
            rpn_pre_nms_top_n_test=rpn._pre_nms_top_n["testing"],
            rpn_post_nms_top_n_train=rpn._post_nms_top_n["training"],
            rpn_post_nms_top_n_test=rpn._post_nms_top_n["testing"],
            box_batch_size_per_image=heads.fg_bg_sampler.batch_size_per_image,
            box_detections_per_img=heads.detections_per_img,
        ),
    ]


def _retinanet(model: RetinaNet, outputs: int) -> list[str]:
    anchors = f"anchor_generator={_anchors(model.anchor_generator)}"
    return ["backbone", str(outputs), anchors, *_keywords(detections_per_img=model.detections_per_img)]


def _anchors(generator: AnchorGenerator) -> str:
    sizes = tuple(tuple(int(side) for side in level) for level in generator.sizes)
    return f"AnchorGenerator({sizes}, {tuple(map(tuple, generator.aspect_ratios))})"


def _keywords(**values: object) -> list[str]:
    return [f"{name}={value!r}" for name, value in values.items()]


def _call(name: str, arguments: list[str]) -> str:
    line = f"{name}({', '.join(arguments)})"
    return line if len(line) < 80 else f"{name}(\n    " + ",\n    ".join(arguments) + ",\n)"
