"""Every setting of mmdet that changes detections is taken over or refused by its name."""

from __future__ import annotations

from typing import Any

import configurations
import pytest
import torch
from cases import BOX, HEAD, RPN

from gkd_fast.convert import mmdet
from gkd_fast.convert.configuration import read_python
from gkd_fast.convert.description import Description
from gkd_fast.errors import InputError

EXTRACTOR, TEST = "model.roi_head.bbox_roi_extractor", "model.test_cfg"
LOAD, RESIZE = {"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (1333, 800), "keep_ratio": True}
NORMALIZE = {"type": "Normalize", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": False}
PAD = {"type": "Pad", "size_divisor": 32}


def described(version: int, kind: str, settings: dict[str, Any]) -> Description:
    text = (configurations.mmdet3 if version == 3 else configurations.mmdet2)(kind, settings)
    return mmdet.describe(read_python(text, "x"), kind, "x")


def pipeline(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"test_dataloader.dataset.pipeline": [LOAD, RESIZE, *transforms]}


def flips(*transforms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    inner = [{"type": "Resize"}, *transforms]
    whole = {"type": "MultiScaleFlipAug", "img_scale": (1333, 800), "flip": False, "transforms": inner}
    return {"data.test.pipeline": [LOAD, whole | changes]}


REFUSED = [
    (3, "faster_rcnn", {"model.backbone.norm_cfg.eps": 1e-3}, r"backbone\.norm_cfg\.eps = 0\.001"),
    (3, "faster_rcnn", {"model.backbone.norm_cfg.type": "GN"}, r"backbone\.norm_cfg\.type = 'GN'"),
    (3, "faster_rcnn", {"model.backbone.plugins": [{"cfg": {"type": "ContextBlock"}}]}, r"backbone\.plugins = "),
    (3, "faster_rcnn", {"model.backbone.avg_down": True}, r"backbone\.avg_down = True"),
    (3, "faster_rcnn", {"model.neck.type": "PAFPN"}, r"neck\.type = 'PAFPN'"),
    (3, "faster_rcnn", {"model.neck.norm_cfg": {"type": "GN"}}, r"neck\.norm_cfg = "),
    (3, "faster_rcnn", {"model.neck.upsample_cfg": {"mode": "bilinear"}}, r"upsample_cfg\.mode = 'bilinear'"),
    (3, "faster_rcnn", {f"{RPN}.anchor_generator.strides": [8, 16, 32, 64, 128]}, r"anchor_generator\.strides = "),
    (3, "faster_rcnn", {f"{RPN}.anchor_generator.center_offset": 0.5}, r"anchor_generator\.center_offset = 0\.5"),
    (3, "faster_rcnn", {f"{RPN}.anchor_generator.type": "LegacyAnchorGenerator"}, "= 'LegacyAnchorGenerator'"),
    (3, "faster_rcnn", {f"{RPN}.bbox_coder.type": "TBLRBBoxCoder"}, r"bbox_coder\.type = 'TBLRBBoxCoder'"),
    (3, "faster_rcnn", {f"{BOX}.bbox_coder.clip_border": False}, r"bbox_coder\.clip_border = False"),
    (3, "faster_rcnn", {f"{BOX}.loss_cls.type": "SeesawLoss"}, r"loss_cls\.type = 'SeesawLoss'"),
    (3, "faster_rcnn", {f"{BOX}.type": "DoubleConvFCBBoxHead"}, r"bbox_head\.type = 'DoubleConvFCBBoxHead'"),
    (3, "faster_rcnn", {f"{EXTRACTOR}.type": "GenericRoIExtractor"}, r"type = 'GenericRoIExtractor'"),
    (3, "faster_rcnn", {f"{EXTRACTOR}.roi_layer.type": "RoIPool"}, r"roi_layer\.type = 'RoIPool'"),
    (3, "faster_rcnn", {f"{EXTRACTOR}.finest_scale": 28}, r"finest_scale = 28"),
    (3, "faster_rcnn", {f"{TEST}.rcnn.nms.type": "nms_match"}, r"rcnn\.nms\.type = 'nms_match'"),
    (3, "faster_rcnn", {f"{TEST}.rcnn.nms.class_agnostic": True}, r"nms\.class_agnostic = True"),
    (3, "faster_rcnn", {f"{TEST}.rpn.nms.offset": 1}, r"rpn\.nms\.offset = 1"),
    (3, "faster_rcnn", {f"{TEST}.rcnn.nms.max_num": 20}, r"rcnn\.nms\.max_num = 20"),
    (3, "faster_rcnn", {"model.data_preprocessor.pad_size_divisor": 1}, r"pad_size_divisor = 1"),
    (3, "faster_rcnn", {"model.data_preprocessor.pad_value": 114}, r"pad_value = 114"),
    (3, "faster_rcnn", {"model.data_preprocessor.mean": [0.5]}, r"data_preprocessor\.mean = \(0\.5,\) .* 3 numbers"),
    (3, "faster_rcnn", pipeline(PAD), r"pipeline's Pad\.type = 'Pad' .* by the data_preprocessor"),
    (3, "faster_rcnn", pipeline(NORMALIZE), r"type = 'Normalize' .* by the data_preprocessor"),
    (3, "faster_rcnn", pipeline({"type": "YOLOXHSVRandomAug"}), r"type = 'YOLOXHSVRandomAug'"),
    (3, "faster_rcnn", pipeline({**RESIZE, "keep_ratio": False}), r"Resize\.keep_ratio = False"),
    (3, "faster_rcnn", pipeline({**RESIZE, "backend": "pillow"}), r"Resize\.backend = 'pillow'"),
    (3, "faster_rcnn", pipeline({**LOAD, "to_float32": True}), r"LoadImageFromFile\.to_float32 = True"),
    (3, "faster_rcnn", pipeline({**LOAD, "color_type": "grayscale"}), r"color_type = 'grayscale'"),
    (3, "retinanet", {f"{HEAD}.type": "RetinaSepBNHead"}, r"bbox_head\.type = 'RetinaSepBNHead'"),
    (3, "retinanet", {f"{HEAD}.stacked_convs": 3}, r"stacked_convs = 3"),
    (3, "retinanet", {"model.neck.add_extra_convs": False}, r"neck\.add_extra_convs = False"),
    (3, "retinanet", {f"{TEST}.nms": {"type": "soft_nms", "iou_threshold": 0.5}}, r"nms\.type = 'soft_nms'"),
    (3, "retinanet", {"model.type": "FSAF"}, r"model\.type = 'FSAF' .* RetinaNet, as the weights"),
    (2, "faster_rcnn", flips(PAD, NORMALIZE), r"Pad\.type = 'Pad' .* Normalize before it"),
    (2, "faster_rcnn", flips(NORMALIZE, {**PAD, "pad_val": {"img": 114}}), r"Pad\.pad_val = \{'img': 114\}"),
    (2, "faster_rcnn", flips(NORMALIZE, {"type": "Pad", "size": (640, 640)}), r"Pad\.size_divisor = None"),
    (2, "faster_rcnn", flips(NORMALIZE, PAD, flip=True), r"MultiScaleFlipAug\.flip = True"),
    (2, "faster_rcnn", flips(NORMALIZE, PAD, img_scale=[(1333, 800), (1333, 600)]), r"scale = .* two sides in pixels"),
]  # fmt: skip


@pytest.mark.parametrize(("version", "kind", "settings", "message"), REFUSED)
def test_what_cannot_be_taken_over_is_refused_by_name(
    version: int, kind: str, settings: dict[str, Any], message: str
) -> None:
    described(version, kind, {})
    with pytest.raises(InputError, match=message) as caught:
        described(version, kind, settings)
    assert "\n" not in str(caught.value)


TAKEN = [
    (3, "retinanet", {f"{HEAD}.anchor_generator.scales_per_octave": 2, f"{HEAD}.anchor_generator.octave_base_scale": 3},
     {"anchor_sizes": tuple((24.0 * 2**k, 24 * 2 ** (k + 0.5)) for k in range(5))}),
    (3, "faster_rcnn", {f"{RPN}.anchor_generator.base_sizes": [5, 9, 17, 33, 65]},
     {"anchor_sizes": ((40.0,), (72.0,), (136.0,), (264.0,), (520.0,))}),
    (3, "faster_rcnn", {"model.backbone.norm_cfg": {"type": "torch.nn.BatchNorm2d", "eps": 1e-5}}, {}),
    (3, "faster_rcnn", {"model.neck.end_level": 3}, {}),
    (3, "faster_rcnn", {f"{BOX}.loss_cls.type": "mmdet.models.losses.CrossEntropyLoss"}, {}),
    (3, "faster_rcnn", {f"{TEST}.rpn.min_bbox_size": 4}, {"smallest_proposal": 4.0}),
    (2, "faster_rcnn", flips(NORMALIZE, PAD), {"bgr": True, "image_mean": (3, 2, 1), "image_std": (6, 5, 4)}),
]  # fmt: skip


@pytest.mark.parametrize(("version", "kind", "settings", "conventions"), TAKEN)
def test_what_is_said_is_taken(version: int, kind: str, settings: dict[str, Any], conventions: dict[str, Any]) -> None:
    found = described(version, kind, settings).conventions
    for name, value in conventions.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value), check_dtype=False)


def test_what_a_configuration_leaves_open_is_said() -> None:
    text = configurations.mmdet2("faster_rcnn", {"model.backbone.style": "caffe"})
    values = read_python(text, "x")
    del values["data"]
    found = mmdet.describe(values, "faster_rcnn", "x")
    assert [note.partition(":")[0] for note in found.notes] == ["x resizes no image", "x says nothing of colours"]
    assert found.conventions["bgr"]


def test_depth_and_classes_are_held_against_the_weights() -> None:
    found = described(3, "faster_rcnn", {"model.backbone.depth": 101, f"{BOX}.num_classes": 7})
    with pytest.raises(InputError, match=r"x: model\.backbone\.depth = 101 cannot .* expected 50, as the weights are"):
        found.depth.check(50, "resnet50")
    with pytest.raises(InputError, match=r"bbox_head\.num_classes = 7 cannot .* expected 3"):
        found.classes.check(3, "3 classes")
    found.classes.check(7, "7 classes")


def test_the_detector_of_semi_supervised_training_is_found() -> None:
    inner = read_python(configurations.mmdet3("faster_rcnn", {}), "x")["model"]
    preprocessor = inner.pop("data_preprocessor")
    outer = {"type": "MultiBranchDataPreprocessor", "data_preprocessor": preprocessor}
    config = {"model": {"type": "SoftTeacher", "detector": inner, "data_preprocessor": outer}}
    for prefix in ("teacher.", "student"):
        found = mmdet.inner(config, prefix)
        assert mmdet.is_detector(found)
        assert found["model"]["data_preprocessor"] == preprocessor
