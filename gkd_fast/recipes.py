"""Presets for the published comparisons: two data sets, two detectors, six pairs of teacher and student.

Names are DATA-DETECTOR-TEACHER-STUDENT, such as ``coco-fasterrcnn-r101-r50``.
"""

from __future__ import annotations

from typing import Any

Preset = dict[str, Any]

LARGE_MODEL: Preset = {
    "teacher": "resnet101",
    "student": "resnet50",
    "teacher_width": 1.0,
    "student_width": 1.0,
    "teacher_channels": 256,
    "student_channels": 256,
    "teacher_head": 1024,
    "student_head": 1024,
    "anchor_size": 32,
    "proposals": 1000,
    "rois": 512,
    "teacher_weights": "IMAGENET1K_V2",
    "student_weights": "IMAGENET1K_V2",
    "pyramid_norm": False,
    "freeze_norm": True,
}

# The schedule of the published results (paper, experiments): 16 images a step, 24 epochs, the rate divided by ten
# after 16 and 22.
_COCO: Preset = {
    **{"data": "coco", "train_split": "train2017", "val_split": "val2017", "short_side": 800, "long_side": 1333},
    **{"cache": False, "workers": 4},
    **{"optimizer": "sgd", "lr": 0.02, "teacher_lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
    **{"batch_size": 16, "epochs": 24, "teacher_epochs": 24, "warmup_steps": 500},
    **{"schedule": "multistep", "milestones": (16, 22)},
}
# OpenMMLab's configurations for VOC 0712: 4 epochs of the data taken three times, the rate divided after the third.
_VOC: Preset = {
    **{"data": "voc", "train_split": "VOC2007/trainval+VOC2012/trainval", "val_split": "VOC2007/test"},
    **{"short_side": 600, "long_side": 1000, "cache": False, "workers": 4},
    **{"optimizer": "sgd", "lr": 0.01, "teacher_lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
    **{"batch_size": 16, "epochs": 12, "teacher_epochs": 12, "warmup_steps": 500},
    **{"schedule": "multistep", "milestones": (9,)},
}

_DATA = {"coco": _COCO, "voc": _VOC}
_DETECTORS = {"fasterrcnn": "faster_rcnn", "retinanet": "retinanet"}
_PAIRS = {
    "r101-r50": ("resnet101", "resnet50"),
    "r152-r18": ("resnet152", "resnet18"),
    "x101-r18": ("resnext101_64x4d", "resnet18"),
    "x101-mobilenetv2": ("resnext101_64x4d", "mobilenet_v2"),
    "convnext-mobilenetv3": ("convnext_base", "mobilenet_v3_large"),
    "swin-mobilenetv3": ("swin_s", "mobilenet_v3_large"),
}


def _recipe(data: str, detector: str, pair: str) -> Preset:
    teacher, student = _PAIRS[pair]
    model = LARGE_MODEL | {"teacher": teacher, "student": student, "detector": _DETECTORS[detector]}
    # The published teachers and students are OpenMMLab's, which start from torchvision's first ImageNet weights.
    model |= {"conventions": "mmdet", "teacher_weights": "IMAGENET1K_V1", "student_weights": "IMAGENET1K_V1"}
    return _DATA[data] | model


RECIPES: dict[str, Preset] = {
    f"{data}-{detector}-{pair}": _recipe(data, detector, pair)
    for data in _DATA
    for detector in _DETECTORS
    for pair in _PAIRS
}
