"""What a configuration of detectron2 says about inference."""

from __future__ import annotations

from typing import Any

from gkd_fast.convert.configuration import Section, is_number
from gkd_fast.convert.description import Description, Said
from gkd_fast.errors import InputError

DETECTORS = {"GeneralizedRCNN": "faster_rcnn", "RetinaNet": "retinanet"}
_BACKBONES = {"faster_rcnn": "build_resnet_fpn_backbone", "retinanet": "build_retinanet_resnet_fpn_backbone"}


def describe(config: dict[str, Any], detector: str, origin: str) -> Description:
    """What the configuration says, and checks of what can't be otherwise here.

    What it does not say has the value of detectron2's own defaults.

    Args:
        config: as `read_yaml` gives it.
        detector: ``faster_rcnn`` or ``retinanet``, by its weights.
        origin: for messages.

    Raises:
        InputError: that names the value which cannot be taken over.
    """
    whole = Section(config, "", origin)
    if "MODEL" not in whole and "model" in whole:
        raise InputError(
            f"{origin}: a LazyConfig; expected the config.yaml that a training by tools/train_net.py writes"
        )
    model = whole.section("MODEL")
    found = Description(by_size=True)
    if DETECTORS.get(model.get("META_ARCHITECTURE", "GeneralizedRCNN")) != detector:
        expected = next(name for name, kind in DETECTORS.items() if kind == detector)
        raise model.refused("META_ARCHITECTURE", f"{expected}, as the weights")
    model.section("BACKBONE").only("NAME", _BACKBONES[detector], default="build_resnet_backbone")
    _resnet(model.section("RESNETS"), found)
    fpn = model.section("FPN")
    fpn.only("NORM", "", default="")
    fpn.only("FUSE_TYPE", "sum", default="sum")
    _input(whole, model, found)
    _anchors(model.section("ANCHOR_GENERATOR"), found)
    (_two_stage if detector == "faster_rcnn" else _one_stage)(model, found)
    found.spec["detections"] = _count(whole.section("TEST"), "DETECTIONS_PER_IMAGE", 100)
    return found


def _resnet(resnet: Section, found: Description) -> None:
    resnet.only("NORM", "FrozenBN", "BN", "SyncBN", "naiveSyncBN", "nnSyncBN", default="FrozenBN")
    resnet.only("DEFORM_ON_PER_STAGE", (False,) * 4, default=(False,) * 4)
    resnet.only("RES5_DILATION", 1, default=1)
    found.depth = Said(resnet, "DEPTH")
    found.conventions["stride_in_1x1"] = resnet.only("STRIDE_IN_1X1", True, False, default=True)


def _input(whole: Section, model: Section, found: Description) -> None:
    given = whole.section("INPUT")
    found.conventions["bgr"] = given.only("FORMAT", "BGR", "RGB", default="BGR") == "BGR"
    for name, default in (("mean", (103.53, 116.28, 123.675)), ("std", (1.0, 1.0, 1.0))):
        numbers = model.numbers(f"PIXEL_{name.upper()}", 3, default)
        found.conventions[f"image_{name}"] = numbers[::-1] if found.conventions["bgr"] else numbers
    found.sides = _count(given, "MIN_SIZE_TEST", 800), _count(given, "MAX_SIZE_TEST", 1333)


def _anchors(generator: Section, found: Description) -> None:
    generator.only("NAME", "DefaultAnchorGenerator", default="DefaultAnchorGenerator")
    generator.only("OFFSET", 0, default=0)
    found.conventions["anchor_sizes"] = _levels(generator, "SIZES", 5, [[32, 64, 128, 256, 512]])
    ratios = _levels(generator, "ASPECT_RATIOS", 1, [[0.5, 1.0, 2.0]])
    if len(set(ratios)) > 1:
        raise generator.refused("ASPECT_RATIOS", "the same ratios on every level")
    found.conventions["anchor_ratios"] = ratios[0]


def _levels(section: Section, name: str, count: int, default: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    """Numbers of every level; one list stands for all levels."""
    lists = section.get(name, default)
    proper = isinstance(lists, (list, tuple)) and lists and all(isinstance(own, (list, tuple)) and own for own in lists)
    if not proper or len({len(own) for own in lists}) > 1 or not all(is_number(n) for own in lists for n in own):
        raise section.refused(name, "lists of numbers, equally many on every level")
    levels = tuple(tuple(map(float, own)) for own in lists)
    levels = levels * count if len(levels) == 1 else levels
    if count > 1 and len(levels) != count:
        raise section.refused(name, f"{count} levels")
    return levels


def _two_stage(model: Section, found: Description) -> None:
    generator, rpn = model.section("PROPOSAL_GENERATOR"), model.section("RPN")
    generator.only("NAME", "RPN", default="RPN")
    rpn.only("HEAD_NAME", "StandardRPNHead", default="StandardRPNHead")
    rpn.only("IN_FEATURES", ("p2", "p3", "p4", "p5", "p6"), default=("res4",))
    found.conventions |= {
        "anchor_weights": rpn.numbers("BBOX_REG_WEIGHTS", 4, (1.0, 1.0, 1.0, 1.0)),
        "candidates": _count(rpn, "PRE_NMS_TOPK_TEST", 6000),
        "proposal_overlap": rpn.number("NMS_THRESH", 0.7),
        "smallest_proposal": max(1e-9, generator.number("MIN_SIZE", 0)),
    }
    found.spec["proposals"] = _count(rpn, "POST_NMS_TOPK_TEST", 1000)
    heads, box = model.section("ROI_HEADS"), model.section("ROI_BOX_HEAD")
    found.classes = Said(heads, "NUM_CLASSES")
    heads.only("NAME", "StandardROIHeads", default="Res5ROIHeads")
    heads.only("IN_FEATURES", ("p2", "p3", "p4", "p5"), default=("res4",))
    box.only("NAME", "FastRCNNConvFCHead", default="")
    box.only("NUM_CONV", 0, default=0)
    box.only("NUM_FC", 2, default=0)
    box.only("POOLER_RESOLUTION", 7, default=14)
    box.only("USE_SIGMOID_CE", False, default=False)
    pooler = box.only("POOLER_TYPE", "ROIAlignV2", "ROIAlign", default="ROIAlignV2")
    found.conventions |= {
        "roi_aligned": pooler == "ROIAlignV2",
        "roi_sampling": int(box.number("POOLER_SAMPLING_RATIO", 0)),
        "box_weights": box.numbers("BBOX_REG_WEIGHTS", 4, (10.0, 10.0, 5.0, 5.0)),
        "least_score": heads.number("SCORE_THRESH_TEST", 0.05),
        "detection_overlap": heads.number("NMS_THRESH_TEST", 0.5),
    }


def _one_stage(model: Section, found: Description) -> None:
    retina = model.section("RETINANET")
    levels = ("p3", "p4", "p5", "p6", "p7")
    retina.only("IN_FEATURES", levels, default=levels)
    found.classes = Said(retina, "NUM_CLASSES")
    retina.only("NUM_CONVS", 4, default=4)
    retina.only("NORM", "", default="")
    found.conventions |= {
        "anchor_weights": retina.numbers("BBOX_REG_WEIGHTS", 4, (1.0, 1.0, 1.0, 1.0)),
        "candidates": _count(retina, "TOPK_CANDIDATES_TEST", 1000),
        "least_score": retina.number("SCORE_THRESH_TEST", 0.05),
        "detection_overlap": retina.number("NMS_THRESH_TEST", 0.5),
    }


def _count(section: Section, name: str, default: int) -> int:
    value = section.number(name, default)
    if value < 1:
        raise section.refused(name, "a positive number")
    return int(value)
