"""What a configuration of mmdet, 2.x or 3.x, says about inference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gkd_fast.convert.configuration import Section, is_number
from gkd_fast.convert.description import Description, Said

DETECTORS = {"FasterRCNN": "faster_rcnn", "MaskRCNN": "faster_rcnn", "RetinaNet": "retinanet"}
_STRIDES = {"faster_rcnn": (4, 8, 16, 32, 64), "retinanet": (8, 16, 32, 64, 128)}
_PASSED_BY = {
    *("LoadAnnotations", "PackDetInputs", "RandomFlip", "ImageToTensor", "DefaultFormatBundle", "Collect"),
    "WrapFieldsToLists",
}
_LOADERS = {"LoadImageFromFile", "LoadImageFromNDArray", "LoadImageFromWebcam"}
_NORMS = ("BN", "SyncBN", "MMSyncBN", "NaiveSyncBN", "BatchNorm2d")


def describe(config: dict[str, Any], detector: str, origin: str) -> Description:
    """What the configuration says, and checks of what can't be otherwise here.

    Args:
        config: as `read_python` gives it; its ``model`` has to be a detector.
        detector: ``faster_rcnn`` or ``retinanet``, by its weights.
        origin: for messages.

    Raises:
        InputError: that names the value which cannot be taken over.
    """
    whole = Section(config, "", origin)
    model = whole.section("model")
    found = Description()
    if DETECTORS.get(_kind(model)) != detector:
        raise model.refused("type", f"{' or '.join(k for k, v in DETECTORS.items() if v == detector)}, as the weights")
    _backbone(model.section("backbone"), found)
    _neck(model.section("neck"), detector, found)
    # 2.0 to 2.6 have test_cfg beside the model; 3.x has a loop of this name there.
    test = model.section("test_cfg") if "test_cfg" in model else whole.section("test_cfg")
    (_two_stage if detector == "faster_rcnn" else _one_stage)(model, test, found)
    places = [place.section("data_preprocessor") for place in (model, whole) if "data_preprocessor" in place]
    newer = bool(places)
    if newer:
        _preprocessor(places[0], found)
    pipeline = _pipeline(whole)
    if pipeline is not None:
        _transforms(pipeline, found, origin, newer=newer)
    elif not newer and "img_norm_cfg" in whole:
        _normalisation(whole.section("img_norm_cfg"), found)
    if found.sides is None:
        found.notes.append(f"{origin} resizes no image: 800 and 1333 pixels assumed; --short-side, --long-side")
    if "image_mean" not in found.conventions:
        found.notes.append(f"{origin} says nothing of colours: mmdet's own statistics for its style assumed")
        if found.conventions["stride_in_1x1"]:
            found.conventions |= {"bgr": True, "image_mean": (123.675, 116.28, 103.53), "image_std": (1.0, 1.0, 1.0)}
    if detector == "retinanet" and not newer:  # 2.x has the setting and ignores it
        found.conventions["empty_boxes"] = "after_nms"
    return found


def inner(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The configuration of the network that a distiller holds under a name, or as it is where it holds none so.

    Teacher and student of semi-supervised training are one ``detector``, whose preprocessor lies in that of the whole.
    """
    held = config.get("model", {})
    if not isinstance(held, dict):
        return config
    own = held.get(prefix.strip(".").rpartition(".")[2], held.get("detector"))
    if not isinstance(own, dict) or "type" not in own:
        return config
    outer = held.get("data_preprocessor")
    outer = outer.get("data_preprocessor", outer) if isinstance(outer, dict) else None
    return {**config, "model": {"data_preprocessor": outer, **own} if outer else own}


def is_detector(config: dict[str, Any]) -> bool:
    """Whether the configuration is of a network, and not of a distiller around one."""
    model = config.get("model")
    return isinstance(model, dict) and ("backbone" in model or str(model.get("type", "")) in DETECTORS)


def _kind(section: Section) -> str:
    """Its type, without the scope of a registry."""
    return str(section.get("type", "")).rpartition(".")[2]


def _is(section: Section, *kinds: str, default: str = "") -> None:
    if (_kind(section) or default) not in kinds:
        raise section.refused("type", " or ".join(kinds))


def _backbone(backbone: Section, found: Description) -> None:
    _is(backbone, "ResNet", "ResNeXt")
    for name in ("dcn", "plugins", "conv_cfg"):
        backbone.only(name, None)
    for name in ("deep_stem", "avg_down"):
        backbone.only(name, False, default=False)
    backbone.only("num_stages", 4, default=4)
    backbone.only("strides", (1, 2, 2, 2), default=(1, 2, 2, 2))
    backbone.only("dilations", (1, 1, 1, 1), default=(1, 1, 1, 1))
    backbone.only("out_indices", (0, 1, 2, 3), default=(0, 1, 2, 3))
    norm = backbone.section("norm_cfg")
    _is(norm, *_NORMS, default="BN")
    norm.only("eps", 1e-5, default=1e-5)
    found.depth = Said(backbone, "depth")
    found.conventions["stride_in_1x1"] = backbone.only("style", "pytorch", "caffe", default="pytorch") == "caffe"


def _neck(neck: Section, detector: str, found: Description) -> None:
    _is(neck, "FPN")
    for name in ("norm_cfg", "act_cfg", "conv_cfg"):
        neck.only(name, None)
    neck.only("num_outs", 5)
    neck.only("end_level", -1, 3, default=-1)
    neck.section("upsample_cfg").only("mode", "nearest", default="nearest")
    neck.only("start_level", {"faster_rcnn": 0, "retinanet": 1}[detector], default=0)
    if detector == "faster_rcnn":
        neck.only("add_extra_convs", False, default=False)
        return
    extra = neck.only("add_extra_convs", True, "on_input", "on_output", default=False)
    if extra is True:
        extra = "on_input" if neck.get("extra_convs_on_inputs", True) else "on_output"
    found.conventions["extra_levels"] = "c5" if extra == "on_input" else "p5"
    found.conventions["relu_before_p7"] = bool(neck.get("relu_before_extra_convs", False))


def _two_stage(model: Section, test: Section, found: Description) -> None:
    rpn, roi = model.section("rpn_head"), model.section("roi_head")
    _is(rpn, "RPNHead")
    rpn.only("num_convs", 1, default=1)
    rpn.section("loss_cls").only("use_sigmoid", True, default=True)
    _anchors(rpn.section("anchor_generator"), "faster_rcnn", found)
    found.conventions["anchor_weights"] = _coder(rpn.section("bbox_coder"))
    _is(roi, "StandardRoIHead", "MaskScoringRoIHead")
    _pooling(roi.section("bbox_roi_extractor"), found)
    _box_head(roi.section("bbox_head"), found)
    _proposals(test.section("rpn"), found)
    _detections(test.section("rcnn"), found)


def _pooling(extractor: Section, found: Description) -> None:
    _is(extractor, "SingleRoIExtractor")
    extractor.only("featmap_strides", (4, 8, 16, 32), default=(4, 8, 16, 32))
    extractor.only("finest_scale", 56, default=56)
    layer = extractor.section("roi_layer")
    _is(layer, "RoIAlign")
    layer.only("output_size", 7, (7, 7), default=layer.get("out_size"))
    layer.only("pool_mode", "avg", default="avg")
    found.conventions["roi_aligned"] = bool(layer.get("aligned", True))
    sampling = layer.get("sampling_ratio", layer.get("sample_num", 0))
    if not is_number(sampling) or sampling < 0:
        raise layer.refused("sampling_ratio", "a number of at least 0")
    found.conventions["roi_sampling"] = int(sampling)


def _box_head(head: Section, found: Description) -> None:
    _is(head, "Shared2FCBBoxHead", "ConvFCBBoxHead")
    if _kind(head) == "ConvFCBBoxHead":
        head.only("num_shared_fcs", 2)
    head.only("with_avg_pool", False, default=False)
    head.section("cls_predictor_cfg").only("type", "Linear", default="Linear")
    head.section("reg_predictor_cfg").only("type", "Linear", default="Linear")
    _is(head.section("loss_cls"), "CrossEntropyLoss", default="CrossEntropyLoss")
    head.section("loss_cls").only("use_sigmoid", False, default=False)
    found.classes = Said(head, "num_classes")
    found.conventions["box_weights"] = _coder(head.section("bbox_coder"), (0.1, 0.1, 0.2, 0.2))


def _one_stage(model: Section, test: Section, found: Description) -> None:
    head = model.section("bbox_head")
    _is(head, "RetinaHead")
    head.only("stacked_convs", 4, default=4)
    for name in ("norm_cfg", "conv_cfg"):
        head.only(name, None)
    head.section("loss_cls").only("use_sigmoid", True, default=True)
    _anchors(head.section("anchor_generator"), "retinanet", found)
    found.conventions["anchor_weights"] = _coder(head.section("bbox_coder"))
    found.classes = Said(head, "num_classes")
    found.conventions["candidates"] = _count(test, "nms_pre")
    least = test.only("min_bbox_size", 0, -1, default=-1)
    found.conventions["empty_boxes"] = "before_nms" if least == 0 else "after_nms"
    _detections(test, found)


def _anchors(generator: Section, detector: str, found: Description) -> None:
    _is(generator, "AnchorGenerator", default="AnchorGenerator")
    strides = _STRIDES[detector]
    generator.only("strides", strides, default=(4, 8, 16, 32, 64))
    generator.only("centers", None)
    generator.only("center_offset", 0, default=0)
    bases = generator.numbers("base_sizes", 5, strides)
    if "scales" in generator:
        scales = _list(generator, "scales")
    else:
        first = generator.number("octave_base_scale")
        octave = int(generator.number("scales_per_octave"))
        scales = tuple(first * 2 ** (step / octave) for step in range(octave))
    found.conventions["anchor_sizes"] = tuple(tuple(base * scale for scale in scales) for base in bases)
    found.conventions["anchor_ratios"] = _list(generator, "ratios")
    found.by_size = not generator.get("scale_major", True)


def _list(section: Section, name: str) -> tuple[float, ...]:
    value = section.get(name)
    count = len(value) if isinstance(value, (list, tuple)) else 0
    return section.numbers(name, max(count, 1), ())


def _coder(coder: Section, deviations: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> tuple[float, ...]:
    """Factors of the offsets: the inverse of their standard deviations."""
    _is(coder, "DeltaXYWHBBoxCoder", default="DeltaXYWHBBoxCoder")
    coder.only("target_means", (0, 0, 0, 0), default=(0, 0, 0, 0))
    coder.only("clip_border", True, default=True)
    coder.only("add_ctr_clamp", False, default=False)
    stds = coder.numbers("target_stds", 4, deviations)
    if min(stds) <= 0:
        raise coder.refused("target_stds", "positive numbers")
    return tuple(1 / value for value in stds)


def _proposals(test: Section, found: Description) -> None:
    test.only("nms_across_levels", False, default=False)
    found.spec["proposals"] = _count(test, "max_per_img" if "max_per_img" in test else "nms_post")
    if "max_per_img" not in test:
        test.only("max_num", found.spec["proposals"], default=found.spec["proposals"])
    found.conventions["candidates"] = _count(test, "nms_pre")
    found.conventions["proposal_overlap"] = _overlap(test)
    least = test.get("min_bbox_size", -1)
    if not is_number(least):
        raise test.refused("min_bbox_size", "a number of pixels")
    # Of at least this side; mmdet asks for more than it, where it asks.
    found.conventions["smallest_proposal"] = 0.0 if least < 0 else max(1e-9, float(least))


def _detections(test: Section, found: Description) -> None:
    found.conventions["least_score"] = test.number("score_thr")
    found.conventions["detection_overlap"] = _overlap(test)
    found.spec["detections"] = _count(test, "max_per_img")


def _overlap(test: Section) -> float:
    if "nms_thr" in test:  # before 2.7
        return test.number("nms_thr")
    nms = test.section("nms")
    _is(nms, "nms", default="nms")
    for name, neutral in (("class_agnostic", False), ("offset", 0), ("score_threshold", 0), ("max_num", -1)):
        nms.only(name, neutral, default=neutral)
    return nms.number("iou_threshold" if "iou_threshold" in nms else "iou_thr")


def _count(section: Section, name: str) -> int:
    value = section.number(name)
    if value < 1:
        raise section.refused(name, "a positive number")
    return int(value)


def _preprocessor(values: Section, found: Description) -> None:
    _is(values, "DetDataPreprocessor", default="DetDataPreprocessor")
    values.only("pad_size_divisor", 32)
    values.only("pad_value", 0, default=0)
    found.conventions["bgr"] = not (values.get("bgr_to_rgb", False) or values.get("rgb_to_bgr", False))
    _statistics(values, found)


def _normalisation(values: Section, found: Description) -> None:
    found.conventions["bgr"] = not values.get("to_rgb", True)
    _statistics(values, found)


def _statistics(values: Section, found: Description) -> None:
    for name, default in (("mean", (0.0, 0.0, 0.0)), ("std", (1.0, 1.0, 1.0))):
        numbers = values.numbers(name, 3, default)
        found.conventions[f"image_{name}"] = numbers[::-1] if found.conventions["bgr"] else numbers


def _pipeline(whole: Section) -> list[Any] | None:
    """The transforms of testing."""
    datasets = [whole.section("test_dataloader").section("dataset"), whole.section("data").section("test")]
    for dataset in datasets:
        while "dataset" in dataset and "pipeline" not in dataset:
            dataset = dataset.section("dataset")
        if "pipeline" in dataset:
            return list(dataset.get("pipeline"))
    return list(whole.get("test_pipeline")) if "test_pipeline" in whole else None


def _flat(transforms: list[Any], origin: str) -> Iterator[Section]:
    for values in transforms:
        transform = Section(values, "test pipeline", origin)
        yield transform
        inner = transform.get("transforms", [])
        yield from _flat(list(inner[0] if inner and isinstance(inner[0], (list, tuple)) else inner), origin)


def _transforms(pipeline: list[Any], found: Description, origin: str, *, newer: bool) -> None:
    scale: Any = None
    normalised = False
    for transform in _flat(pipeline, origin):
        kind = _kind(transform)
        named = Section(transform.values, f"test pipeline's {kind}", transform.origin)
        if kind == "MultiScaleFlipAug":
            named.only("flip", False, default=False)
            scale = named.get("img_scale")
        elif kind == "Resize":
            named.only("keep_ratio", True, default=not newer)
            named.only("backend", "cv2", default="cv2")
            named.only("interpolation", "bilinear", default="bilinear")
            scale = named.get("scale", named.get("img_scale", scale))
            found.sides = _sides(named, scale)
        elif kind in ("Normalize", "Pad") and newer:
            raise named.refused("type", "both by the data_preprocessor")
        elif kind == "Normalize":
            _normalisation(named, found)
            normalised = True
        elif kind == "Pad":
            _padding(named, normalised=normalised)
        elif kind in _LOADERS:
            named.only("to_float32", False, default=False)
            named.only("color_type", "color", default="color")
            named.only("channel_order", "bgr", default="bgr")
        elif kind not in _PASSED_BY:
            raise named.refused("type", "a pipeline that loads, resizes, normalises and pads")


def _padding(pad: Section, *, normalised: bool) -> None:
    if not normalised:
        raise pad.refused("type", "Normalize before it")
    pad.only("size_divisor", 32)
    pad.only("size", None)
    pad.only("pad_to_square", False, default=False)
    value = pad.get("pad_val", 0)
    if (value.get("img", 0) if isinstance(value, dict) else value) != 0:
        raise pad.refused("pad_val", "0")


def _sides(resize: Section, scale: Any) -> tuple[int, int]:
    if isinstance(scale, (list, tuple)) and len(scale) == 1 and not is_number(scale[0]):
        scale = scale[0]
    if not isinstance(scale, (list, tuple)) or len(scale) != 2 or not all(map(is_number, scale)):
        raise resize.refused("scale", "two sides in pixels")
    return int(min(scale)), int(max(scale))
