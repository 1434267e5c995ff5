"""Run in the environment of mmdet 2.28 and mmcv 1.7: checkpoints by its functions, and what it detects with them.

python with_mmdet2.py FOLDER NAME ...
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
# The library is older than the numpy and torch it runs with here.
for name, kind in (("int", int), ("float", float), ("bool", bool), ("object", object), ("long", int)):
    if name not in np.__dict__:
        setattr(np, name, kind)
_load = torch.load
torch.load = lambda *arguments, **options: _load(*arguments, **{**options, "weights_only": False})

import mmdet  # noqa: E402
import networks  # noqa: E402
from cases import BOX, MMDET2, MMDET_NARROW  # noqa: E402
from mmcv import Config  # noqa: E402
from mmcv.runner import EMAHook, save_checkpoint  # noqa: E402
from mmdet.apis import inference_detector, init_detector  # noqa: E402
from mmdet.datasets import CocoDataset, VOCDataset  # noqa: E402
from mmdet.models import build_detector  # noqa: E402
from outcomes import LONG, NAMES3, PICTURES, SHORT, run, without_downloads, write  # noqa: E402

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"
F50, R50 = "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py", "retinanet/retinanet_r50_fpn_1x_coco.py"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "frcnn_r50": (F50, {}),
    "frcnn_r50_caffe": ("faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py", {}),
    "frcnn_r101": ("faster_rcnn/faster_rcnn_r101_fpn_1x_coco.py", {}),
    "frcnn_x101_32x4d": ("faster_rcnn/faster_rcnn_x101_32x4d_fpn_1x_coco.py", {}),
    "frcnn_x101_64x4d": ("faster_rcnn/faster_rcnn_x101_64x4d_fpn_1x_coco.py", {}),
    "frcnn_x101_32x8d": ("faster_rcnn/faster_rcnn_x101_32x8d_fpn_mstrain_3x_coco.py", {}),
    "frcnn_c3": (F50, {f"{BOX}.num_classes": 3}),
    "frcnn_voc": ("pascal_voc/faster_rcnn_r50_fpn_1x_voc0712.py", {}),
    "frcnn_ema": (F50, {}),
    "retina_r50": (R50, {}),
    "retina_r50_caffe": ("retinanet/retinanet_r50_caffe_fpn_1x_coco.py", {}),
    "retina_r101": ("retinanet/retinanet_r101_fpn_1x_coco.py", {}),
    "retina_r18": ("retinanet/retinanet_r18_fpn_1x_coco.py", {}),
    "retina_x101_32x4d": ("retinanet/retinanet_x101_32x4d_fpn_1x_coco.py", {}),
    "retina_x101_64x4d": ("retinanet/retinanet_x101_64x4d_fpn_1x_coco.py", {}),
    "retina_x101_32x8d": ("retinanet/retinanet_x101_32x4d_fpn_1x_coco.py", {"model.backbone.base_width": 8}),
    "mask_rcnn": ("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", {}),
    "refused_soft_nms": ("faster_rcnn/faster_rcnn_r50_fpn_soft_nms_1x_coco.py", {}),
    "refused_cascade": ("cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.py", {}),
}

for vector, (kind, settings) in MMDET2.items():
    CASES[vector] = (F50 if kind == "faster_rcnn" else R50, {**MMDET_NARROW[kind], **settings})


def configuration(name: str) -> Any:
    """The library's own, with the changes of the case and small images in testing."""
    file, changes = CASES[name]
    config = Config.fromfile(str(CONFIGS / file))
    without_downloads(config.model)
    config.merge_from_dict(changes)
    for pipeline in (config.get("test_pipeline", []), config.data.test.pipeline):
        for transform in pipeline:
            if transform["type"] == "MultiScaleFlipAug":
                transform["img_scale"] = (LONG, SHORT)
    return config


def make(name: str, folder: Path) -> None:
    """Write the checkpoint, and what the library detects with it."""
    config = configuration(name)
    model = build_detector(config.model, test_cfg=config.get("test_cfg")).eval()
    model.cfg = config
    model.CLASSES = (VOCDataset if "voc" in name else CocoDataset).CLASSES
    if "c3" in name or "vector" in name:
        model.CLASSES = NAMES3
    shapes, factors = networks.fill(
        model, lambda: inference_detector(model, np.ascontiguousarray(PICTURES["exact"][..., ::-1]))
    )
    if "ema" in name:
        _average(model)
    meta = {
        "env_info": "",
        "config": config.pretty_text,
        "seed": 0,
        "mmdet_version": mmdet.__version__,
        "CLASSES": model.CLASSES,
        "epoch": 1,
    }
    file = folder / "checkpoint.pth"
    save_checkpoint(model, str(file), meta=meta)
    if "refused" in name:
        return
    config.dump(str(folder / "config.py"))
    detector = init_detector(str(folder / "config.py"), str(file), device="cpu")
    found = {}
    for key, image in PICTURES.items():
        result = inference_detector(detector, np.ascontiguousarray(image[..., ::-1]))
        result = result[0] if isinstance(result, tuple) else result
        labels = np.concatenate([[number] * len(boxes) for number, boxes in enumerate(result)])
        boxes = np.concatenate(result)
        found[key] = (boxes[:, :4], boxes[:, 4], labels)
    write(folder, found, shapes, factors)


def _average(model: torch.nn.Module) -> None:
    """What the library's EMAHook leaves in the model when an epoch ends: averages by the plain names.

    The weights are averaged with themselves times -1 here, so that taking the other ones is seen.
    """
    runner = SimpleNamespace(model=model, iter=0)
    hook = EMAHook(momentum=0.5, interval=1)
    hook.before_run(runner)
    with torch.no_grad():
        for value in model.parameters():
            value.neg_()
    hook.after_train_epoch(runner)


if __name__ == "__main__":
    run(make)
