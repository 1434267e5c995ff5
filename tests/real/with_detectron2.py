"""Run in detectron2's own environment: checkpoints by its functions, and what it detects with them.

python with_detectron2.py FOLDER NAME ...
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from cases import DETECTRON2, DETECTRON2_NARROW, DETECTRON2_R18, DETECTRON2_RGB
from outcomes import LONG, PICTURES, SHORT, run, write

warnings.filterwarnings("ignore")
torch.set_num_threads(1)

from detectron2 import model_zoo  # noqa: E402
from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.engine import DefaultPredictor  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.solver import build_optimizer  # noqa: E402

F50, R50 = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", "COCO-Detection/retinanet_R_50_FPN_3x.yaml"
C3, C3R = {"MODEL.ROI_HEADS.NUM_CLASSES": 3}, {"MODEL.RETINANET.NUM_CLASSES": 3}


def resnext(groups: int, width: int) -> dict[str, Any]:
    return {
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.NUM_GROUPS": groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    }


# File, changes, suffix of the checkpoint, and whether its configuration lies beside it.
CASES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "frcnn_r50": (F50, {}, "pth", True),
    "frcnn_r18": (F50, DETECTRON2_R18, "pth", True),
    "frcnn_r50_pkl": (F50, {}, "pkl", False),
    "frcnn_r101": ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", {}, "pkl", False),
    "frcnn_x101_32x8d": ("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml", {}, "pkl", False),
    "frcnn_x101_32x4d": (F50, resnext(32, 4), "pth", True),
    "frcnn_x101_64x4d": (F50, resnext(64, 4), "pth", True),
    "frcnn_rgb": (F50, DETECTRON2_RGB, "pth", True),
    "frcnn_c3": (F50, C3, "pth", True),
    "frcnn_agnostic": (F50, {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}, "pth", True),
    "frcnn_voc": ("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml", {}, "pth", True),
    "frcnn_bn": (F50, {"MODEL.RESNETS.NORM": "BN"}, "pth", True),
    "frcnn_anchors": (F50, {"MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]]}, "pth", True),
    "frcnn_ratios": (F50, {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.25, 0.5, 1.0, 2.0, 4.0]]}, "pth", True),
    "frcnn_weights": (F50, {"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (20.0, 20.0, 10.0, 10.0)}, "pth", True),
    "frcnn_pixel_mean": (F50, {"MODEL.PIXEL_MEAN": [100.0, 110.0, 120.0]}, "pth", True),
    "frcnn_roialign_v1": (F50, {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign"}, "pth", True),
    "mask_rcnn": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", {}, "pkl", False),
    "retina_r50": (R50, {}, "pth", True),
    "retina_r101": ("COCO-Detection/retinanet_R_101_FPN_3x.yaml", {}, "pkl", False),
    "retina_x101_32x4d": (R50, resnext(32, 4), "pth", True),
    "retina_x101_64x4d": (R50, resnext(64, 4), "pth", True),
    "retina_x101_32x8d": (R50, resnext(32, 8), "pkl", False),
    "retina_rgb": (R50, DETECTRON2_RGB, "pth", True),
    "retina_c3": (R50, C3R, "pth", True),
    "retina_anchors": (
        R50,
        {"MODEL.ANCHOR_GENERATOR.SIZES": [[x * 2 ** (i / 3) for i in range(3)] for x in (16, 32, 64, 128, 256)]},
        "pth",
        True,
    ),
    "refused_fpn_gn": (F50, {"MODEL.FPN.NORM": "GN"}, "pth", False),
    "refused_backbone_gn": (F50, {"MODEL.RESNETS.NORM": "GN"}, "pth", False),
    "refused_retina_gn": (R50, {"MODEL.RETINANET.NORM": "GN"}, "pth", False),
    "refused_3_convolutions": (R50, {"MODEL.RETINANET.NUM_CONVS": 3}, "pth", False),
    "refused_cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", {"MODEL.MASK_ON": False}, "pth", False),
    "refused_c4": ("COCO-Detection/faster_rcnn_R_50_C4_3x.yaml", {}, "pth", False),
}

for vector, (kind, settings) in DETECTRON2.items():
    CASES[vector] = (F50 if kind == "faster_rcnn" else R50, {**DETECTRON2_NARROW, **settings}, "pth", True)


def configuration(name: str) -> Any:
    """The library's own, with the changes of the case and small images in testing."""
    file, changes, *_ = CASES[name]
    config = get_cfg()
    config.merge_from_file(model_zoo.get_config_file(file))
    config.merge_from_list([item for pair in changes.items() for item in pair])
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", ""
    config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST = SHORT, LONG
    return config


def make(name: str, folder: Path) -> None:
    """Write the checkpoint, and what the library detects with it."""
    config, suffix = configuration(name), CASES[name][2]
    model = build_model(config).eval()
    image = torch.from_numpy(PICTURES["exact"].copy()).permute(2, 0, 1).float()
    image = image.flip(0) if config.INPUT.FORMAT == "BGR" else image
    file = folder / f"model_final.{suffix}"
    if "refused" in name:
        DetectionCheckpointer(model, str(folder)).save("model_final")
        return
    shapes, factors = networks.fill(model, lambda: model([{"image": image}]))
    if suffix == "pkl":  # as the files of its model zoo
        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        file.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    else:
        DetectionCheckpointer(model, str(folder), optimizer=build_optimizer(config, model)).save(
            "model_final", iteration=1
        )
    if CASES[name][3]:
        (folder / "config.yaml").write_text(config.dump())
    config.MODEL.WEIGHTS = str(file)
    predictor, found = DefaultPredictor(config), {}
    for key, picture in PICTURES.items():
        result = predictor(np.ascontiguousarray(picture[..., ::-1]))["instances"]
        found[key] = (result.pred_boxes.tensor.numpy(), result.scores.numpy(), result.pred_classes.numpy())
    write(folder, found, shapes, factors)


if __name__ == "__main__":
    run(make)
