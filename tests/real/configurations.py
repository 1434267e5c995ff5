"""Configurations in the form of each library, with the settings of a case."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from cases import DETECTRON2_NARROW, MMDET_NARROW
from outcomes import LONG, SHORT

_CODER = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0, 0.0, 0.0, 0.0]}
_NMS = {"type": "nms", "iou_threshold": 0.5}
_MMDET: dict[str, dict[str, Any]] = {
    "faster_rcnn": {
        "type": "FasterRCNN",
        "neck": {"type": "FPN", "num_outs": 5},
        "rpn_head": {
            "type": "RPNHead",
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [8],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": {**_CODER, "target_stds": [1.0, 1.0, 1.0, 1.0]},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
                "featmap_strides": [4, 8, 16, 32],
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "bbox_coder": {**_CODER, "target_stds": [0.1, 0.1, 0.2, 0.2]},
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False},
            },
        },
        "test_cfg": {
            "rpn": {
                "nms_pre": 1000,
                "max_per_img": 1000,
                "nms": {"type": "nms", "iou_threshold": 0.7},
                "min_bbox_size": 0,
            },
            "rcnn": {"score_thr": 0.05, "nms": _NMS, "max_per_img": 100},
        },
    },
    "retinanet": {
        "type": "RetinaNet",
        "neck": {"type": "FPN", "num_outs": 5, "start_level": 1, "add_extra_convs": "on_input"},
        "bbox_head": {
            "type": "RetinaHead",
            "stacked_convs": 4,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": 3,
                "ratios": [0.5, 1.0, 2.0],
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": {**_CODER, "target_stds": [1.0, 1.0, 1.0, 1.0]},
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True},
        },
        "test_cfg": {"nms_pre": 1000, "min_bbox_size": 0, "score_thr": 0.05, "nms": _NMS, "max_per_img": 100},
    },
}
_STATISTICS = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


def mmdet3(kind: str, settings: dict[str, Any]) -> str:
    """Text as mmengine writes it into a checkpoint; settings by their paths, such as ``model.neck.num_outs``."""
    model = copy.deepcopy(_MMDET[kind])
    model["backbone"] = {"type": "ResNet", "depth": 50, "style": "pytorch", "norm_cfg": {"type": "BN"}}
    model["data_preprocessor"] = {
        "type": "DetDataPreprocessor",
        **copy.deepcopy(_STATISTICS),
        "bgr_to_rgb": True,
        "pad_size_divisor": 32,
    }
    pipeline = [
        {"type": "LoadImageFromFile", "backend_args": None},
        {"type": "Resize", "scale": (LONG, SHORT), "keep_ratio": True},
        {"type": "PackDetInputs"},
    ]
    values = {"model": model, "test_pipeline": pipeline, "test_dataloader": {"dataset": {"pipeline": pipeline}}}
    _set(values, {**MMDET_NARROW[kind], **settings})
    return _text(values)


def mmdet2(kind: str, settings: dict[str, Any]) -> str:
    """Text as mmcv writes it into a checkpoint of mmdet 2.x."""
    model = copy.deepcopy(_MMDET[kind])
    model["backbone"] = {"type": "ResNet", "depth": 50, "style": "pytorch", "norm_cfg": {"type": "BN"}}
    inner = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        {"type": "Normalize", **_STATISTICS, "to_rgb": True},
        {"type": "Pad", "size_divisor": 32},
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    flips = {"type": "MultiScaleFlipAug", "img_scale": (LONG, SHORT), "flip": False, "transforms": inner}
    pipeline = [{"type": "LoadImageFromFile"}, flips]
    values = {"model": model, "data": {"test": {"type": "CocoDataset", "pipeline": pipeline}}}
    _set(values, {**MMDET_NARROW[kind], **settings})
    return _text(values)


def _text(values: dict[str, Any]) -> str:
    """Calls of dict and lists that end in a comma, as both libraries write them."""
    return "\n".join(f"{name} = {_written(value)}" for name, value in values.items())


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return f"dict({', '.join(f'{name}={_written(item)}' for name, item in value.items())})"
    if isinstance(value, list):
        return f"[\n    {', '.join(map(_written, value))},\n]" if value else "[]"
    return repr(value)


def detectron2(kind: str, settings: dict[str, Any], path: Path) -> Path:
    """A file as detectron2 writes it, with what it takes for granted left out."""
    anchors = [[32], [64], [128], [256], [512]]
    backbone, levels, name = "build_resnet_fpn_backbone", ["p2", "p3", "p4", "p5"], "GeneralizedRCNN"
    if kind == "retinanet":
        anchors = [[32.0 * 2 ** (level + step / 3) for step in range(3)] for level in range(5)]
        backbone, name = "build_retinanet_resnet_fpn_backbone", "RetinaNet"
    values: dict[str, Any] = {
        "MODEL": {
            "META_ARCHITECTURE": name,
            "BACKBONE": {"NAME": backbone},
            "ANCHOR_GENERATOR": {"SIZES": anchors, "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
            "RPN": {"IN_FEATURES": [*levels, "p6"], "PRE_NMS_TOPK_TEST": 1000, "POST_NMS_TOPK_TEST": 1000},
            "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": levels},
            "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7},
        },
        "INPUT": {"MIN_SIZE_TEST": SHORT, "MAX_SIZE_TEST": LONG},
        "VERSION": 2,
    }
    _set(values, {**DETECTRON2_NARROW, **settings})
    path.write_text(yaml.safe_dump(values))
    return path


def _set(values: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        *path, last = name.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
