"""Run in mmdet 3.x's own environment: checkpoints by its functions, and what it detects with them.

python with_mmdet3.py FOLDER NAME ...
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import BOX, HEAD, MMDET3, MMDET_NARROW, MMDET_R18, RPN
from outcomes import LONG, NAMES3, PICTURES, SHORT, run, without_downloads, write

warnings.filterwarnings("ignore")
torch.set_num_threads(1)

import mmdet  # noqa: E402
import networks  # noqa: E402
from mmdet.apis import inference_detector, init_detector  # noqa: E402
from mmdet.datasets import CocoDataset, VOCDataset  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner, save_checkpoint  # noqa: E402

register_all_modules()
CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"
F50, R50 = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "retinanet/retinanet_r50_fpn_1x_coco.py"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "frcnn_r50": (F50, {}),
    "frcnn_r18": (F50, MMDET_R18),
    "frcnn_r101": ("faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py", {}),
    "frcnn_x101_32x4d": ("faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco.py", {}),
    "frcnn_x101_64x4d": ("faster_rcnn/faster-rcnn_x101-64x4d_fpn_1x_coco.py", {}),
    "frcnn_x101_32x8d": ("faster_rcnn/faster-rcnn_x101-32x8d_fpn_ms-3x_coco.py", {}),
    "frcnn_r50_caffe": ("faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py", {}),
    "frcnn_r101_caffe": ("faster_rcnn/faster-rcnn_r101-caffe_fpn_1x_coco.py", {}),
    "frcnn_c3": (F50, {f"{BOX}.num_classes": 3}),
    "frcnn_voc": ("pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py", {}),
    "frcnn_agnostic": (F50, {f"{BOX}.reg_class_agnostic": True}),
    "frcnn_giou": ("faster_rcnn/faster-rcnn_r50_fpn_giou_1x_coco.py", {}),
    "frcnn_anchors": (F50, {f"{RPN}.anchor_generator.scales": [4]}),
    "frcnn_two_scales": (F50, {f"{RPN}.anchor_generator.scales": [4, 8]}),
    "frcnn_ratios": (F50, {f"{RPN}.anchor_generator.ratios": [0.25, 0.5, 1.0, 2.0, 4.0]}),
    "frcnn_stds": (F50, {f"{BOX}.bbox_coder.target_stds": [0.05, 0.05, 0.1, 0.1]}),
    "frcnn_norm255": (
        F50,
        {"model.data_preprocessor.mean": [0, 0, 0], "model.data_preprocessor.std": [255.0, 255.0, 255.0]},
    ),
    "frcnn_roialign_v1": (
        F50,
        {
            "model.roi_head.bbox_roi_extractor.roi_layer": {
                "type": "RoIAlign",
                "output_size": 7,
                "sampling_ratio": 2,
                "aligned": False,
            }
        },
    ),
    "mask_rcnn": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", {}),
    "retina_r50": (R50, {}),
    "retina_r18": ("retinanet/retinanet_r18_fpn_1x_coco.py", {}),
    "retina_r101": ("retinanet/retinanet_r101_fpn_1x_coco.py", {}),
    "retina_x101_32x4d": ("retinanet/retinanet_x101-32x4d_fpn_1x_coco.py", {}),
    "retina_x101_64x4d": ("retinanet/retinanet_x101-64x4d_fpn_1x_coco.py", {}),
    "retina_x101_32x8d": ("retinanet/retinanet_x101-32x4d_fpn_1x_coco.py", {"model.backbone.base_width": 8}),
    "retina_r50_caffe": ("retinanet/retinanet_r50-caffe_fpn_1x_coco.py", {}),
    "retina_c3": (R50, {f"{HEAD}.num_classes": 3}),
    "retina_anchors": (R50, {f"{HEAD}.anchor_generator.octave_base_scale": 2}),
    "retina_stds": (R50, {f"{HEAD}.bbox_coder.target_stds": [0.1, 0.1, 0.2, 0.2]}),
    "retina_on_output": (R50, {"model.neck.add_extra_convs": "on_output", "model.neck.relu_before_extra_convs": True}),
    "frcnn_trained_ema": (F50, {**MMDET_R18, **MMDET_NARROW["faster_rcnn"]}),
    # to be refused
    "refused_soft_nms": ("faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py", {}),
    "refused_cascade": ("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", {}),
    "refused_dcn": ("dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py", {}),
    "refused_gn": (R50, {f"{HEAD}.norm_cfg": {"type": "GN", "num_groups": 32}}),
    "refused_fcos_rpn": ("faster_rcnn/faster-rcnn_r50_fpn_fcos-rpn_1x_coco.py", {}),
}

for vector, (kind, settings) in MMDET3.items():
    CASES[vector] = (F50 if kind == "faster_rcnn" else R50, {**MMDET_NARROW[kind], **settings})


def configuration(name: str) -> Any:
    """The library's own, with the changes of the case and small images in testing."""
    file, changes = CASES[name]
    config = Config.fromfile(str(CONFIGS / file))
    without_downloads(config.model)
    config.merge_from_dict(changes)
    pipelines = [config.test_pipeline] if "test_pipeline" in config else []
    for pipeline in (*pipelines, config.test_dataloader.dataset.pipeline):
        for transform in pipeline:
            if transform["type"] == "Resize":
                transform["scale"] = (LONG, SHORT)
    return config


def make(name: str, folder: Path) -> None:
    """Write the checkpoint, and what the library detects with it."""
    config = configuration(name)
    model = MODELS.build(config.model).eval()
    model.cfg = config
    shapes, factors = networks.fill(model, lambda: inference_detector(model, PICTURES["exact"][..., ::-1]))
    file = folder / "checkpoint.pth"
    if "trained" in name:
        _train(config, model, folder, file)
    else:
        meta = dict((VOCDataset if "voc" in name else CocoDataset).METAINFO)
        meta = {"classes": NAMES3} if "c3" in name or "vector" in name else meta
        content = {
            "epoch": 1,
            "iter": 2,
            "cfg": config.pretty_text,
            "seed": 0,
            "experiment_name": name,
            "time": "",
            "dataset_meta": meta,
        }
        save_checkpoint({"meta": content, "state_dict": model.state_dict()}, str(file))
    if "refused" in name:
        return
    written = folder / "config.py"
    config.dump(str(written))
    detector = init_detector(str(written), str(file), device="cpu")
    found = {}
    for key, image in PICTURES.items():
        result = inference_detector(detector, np.ascontiguousarray(image[..., ::-1])).pred_instances
        found[key] = (result.bboxes.numpy(), result.scores.numpy(), result.labels.numpy())
    write(folder, found, shapes, factors)


def _train(config: Any, model: torch.nn.Module, folder: Path, file: Path) -> None:
    """Two steps by the library's own trainer, with averaged weights beside those trained."""
    from PIL import Image

    torch.save({"state_dict": model.state_dict()}, folder / "start.pth")
    (folder / "images").mkdir(exist_ok=True)
    images, boxes = [], []
    for number, image in enumerate(PICTURES.values()):
        Image.fromarray(image).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": image.shape[0], "width": image.shape[1]})
        boxes.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 20, 90, 70], "area": 6300, "iscrowd": 0}
        )
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES3)]
    truth = folder / "truth.json"
    truth.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    config.train_dataloader = {
        "batch_size": 1,
        "num_workers": 0,
        "persistent_workers": False,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {
            "type": "CocoDataset",
            "ann_file": str(truth),
            "data_prefix": {"img": str(folder / "images")},
            "metainfo": {"classes": NAMES3},
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "LoadAnnotations", "with_bbox": True},
                {"type": "Resize", "scale": (160, 96), "keep_ratio": True},
                {"type": "PackDetInputs"},
            ],
        },
    }
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.test_evaluator = config.test_cfg = None
    test, config.test_dataloader = config.test_dataloader, None
    config.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 1}
    config.param_scheduler = []
    config.optim_wrapper.optimizer.lr = 1e-3
    config.custom_hooks = [{"type": "EMAHook", "momentum": 0.3}]
    config.default_hooks.pop("visualization", None)
    config.work_dir, config.load_from, config.log_level = str(folder / "run"), str(folder / "start.pth"), "ERROR"
    config._cfg_dict["test_pipeline"] = test.dataset.pipeline
    Runner.from_cfg(config).train()
    config.test_dataloader = test
    (folder / "run/epoch_1.pth").rename(file)


if __name__ == "__main__":
    run(make)
