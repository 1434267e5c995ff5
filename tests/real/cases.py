"""The cases whose outputs ship as vectors: settings of each library by its own names. Nothing is imported here."""

from __future__ import annotations

from typing import Any

BOX, RPN, HEAD = "model.roi_head.bbox_head", "model.rpn_head", "model.bbox_head"
MMDET_R18 = {"model.backbone.depth": 18, "model.neck.in_channels": [64, 128, 256, 512]}
MMDET_NARROW = {
    "faster_rcnn": {
        "model.neck.out_channels": 64,
        f"{BOX}.in_channels": 64,
        f"{BOX}.fc_out_channels": 64,
        f"{RPN}.in_channels": 64,
        f"{RPN}.feat_channels": 64,
        "model.roi_head.bbox_roi_extractor.out_channels": 64,
        f"{BOX}.num_classes": 3,
    },
    "retinanet": {
        "model.neck.out_channels": 64,
        f"{HEAD}.in_channels": 64,
        f"{HEAD}.feat_channels": 64,
        f"{HEAD}.num_classes": 3,
    },
}
MMDET_CAFFE = {
    "model.data_preprocessor.mean": [103.53, 116.28, 123.675],
    "model.data_preprocessor.std": [1.0, 1.0, 1.0],
    "model.data_preprocessor.bgr_to_rgb": False,
    "model.backbone.style": "caffe",
}
MMDET3: dict[str, tuple[str, dict[str, Any]]] = {
    "vector_frcnn": ("faster_rcnn", {}),
    "vector_frcnn_caffe": ("faster_rcnn", MMDET_CAFFE),
    "vector_frcnn_settings": (
        "faster_rcnn",
        {
            **MMDET_R18,
            f"{BOX}.reg_class_agnostic": True,
            f"{RPN}.anchor_generator.scales": [4, 10],
            f"{RPN}.anchor_generator.ratios": [0.4, 1.0],
            f"{RPN}.bbox_coder.target_stds": [0.5, 0.5, 0.7, 0.7],
            f"{BOX}.bbox_coder.target_stds": [0.05, 0.05, 0.1, 0.1],
            "model.data_preprocessor.mean": [0, 0, 0],
            "model.data_preprocessor.std": [255.0, 255.0, 255.0],
            "model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": 2,
            "model.roi_head.bbox_roi_extractor.roi_layer.aligned": False,
            "model.test_cfg.rpn.nms_pre": 300,
            "model.test_cfg.rpn.max_per_img": 200,
            "model.test_cfg.rpn.nms.iou_threshold": 0.6,
            "model.test_cfg.rcnn.score_thr": 0.1,
            "model.test_cfg.rcnn.nms.iou_threshold": 0.4,
            "model.test_cfg.rcnn.max_per_img": 60,
        },
    ),
    "vector_retina": ("retinanet", {}),
    "vector_retina_settings": (
        "retinanet",
        {
            **MMDET_R18,
            f"{HEAD}.anchor_generator.octave_base_scale": 2,
            f"{HEAD}.anchor_generator.ratios": [0.25, 0.5, 1.0, 2.0, 4.0],
            f"{HEAD}.bbox_coder.target_stds": [0.5, 0.5, 0.7, 0.7],
            "model.neck.add_extra_convs": "on_output",
            "model.neck.relu_before_extra_convs": True,
        },
    ),
}
MMDET2: dict[str, tuple[str, dict[str, Any]]] = {
    "vector_frcnn_ema": ("faster_rcnn", {}),
    "vector_retina": ("retinanet", {}),
}
DETECTRON2_NARROW = {"MODEL.FPN.OUT_CHANNELS": 64, "MODEL.ROI_BOX_HEAD.FC_DIM": 64}
DETECTRON2_NARROW |= {"MODEL.ROI_HEADS.NUM_CLASSES": 3, "MODEL.RETINANET.NUM_CLASSES": 3}
DETECTRON2_R18 = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
DETECTRON2_RGB = {
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "INPUT.FORMAT": "RGB",
}
DETECTRON2: dict[str, tuple[str, dict[str, Any]]] = {
    "vector_frcnn": ("faster_rcnn", {}),
    "vector_frcnn_settings": (
        "faster_rcnn",
        {
            **DETECTRON2_R18,
            **DETECTRON2_RGB,
            "MODEL.ANCHOR_GENERATOR.SIZES": [[12, 30], [24, 60], [48, 120], [96, 240], [192, 480]],
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.4, 1.0]],
            "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [20.0, 20.0, 10.0, 10.0],
            "MODEL.RPN.BBOX_REG_WEIGHTS": [2.0, 2.0, 1.5, 1.5],
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 200,
            "MODEL.RPN.NMS_THRESH": 0.6,
            "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
            "TEST.DETECTIONS_PER_IMAGE": 60,
        },
    ),
    "vector_retina": ("retinanet", {}),
}
