"""Plain torchvision detectors from a small specification."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from gkd_fast import ops
from gkd_fast.detectors.backbones import PYRAMID_STRIDES, backbone_with_fpn
from gkd_fast.detectors.base import normalised_batch
from gkd_fast.detectors.conventions import CONVENTIONS, Anchors, Conventions, box_coder
from gkd_fast.detectors.ordered import OrderedRetinaNet
from gkd_fast.detectors.settings import ModelConfig, NetworkConfig
from gkd_fast.errors import InputError

# torchvision's builders whose weights COCO_V1 were trained without an epsilon in the normalisation.
WITHOUT_EPSILON = frozenset({"fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"})


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """All that is needed to build the network again; stored in every checkpoint."""

    detector: Literal["faster_rcnn", "retinanet"]
    backbone: str
    width: float = 1.0
    channels: int = 256
    head: int = 1024
    anchor_size: int = 32
    pyramid_norm: bool = False
    freeze_norm: bool = False
    proposals: int = 1000
    rois: int = 512
    detections: int = 100
    builder: str = ""
    """Name of a torchvision detector to build instead (fasterrcnn_resnet50_fpn); the fields above then
    describe nothing but the detector's kind."""
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        if isinstance(self.conventions, dict):  # from a file
            object.__setattr__(self, "conventions", Conventions(**self.conventions))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


def specs(model: ModelConfig) -> tuple[DetectorSpec, DetectorSpec]:
    """The specifications of teacher and student."""
    shared: dict[str, Any] = {
        name: getattr(model, name)
        for name in ("detector", "anchor_size", "pyramid_norm", "freeze_norm", "proposals", "rois", "detections")
    }
    shared["conventions"] = CONVENTIONS[model.conventions]

    def spec(own: NetworkConfig) -> DetectorSpec:
        return DetectorSpec(backbone=own.backbone, width=own.width, channels=own.channels, head=own.head, **shared)

    return spec(model.teacher), spec(model.student)


def build_detector(spec: DetectorSpec, num_classes: int, *, weights: str = "") -> FasterRCNN | RetinaNet:
    """Build a torchvision detector for images that the data pipeline has already resized.

    Args:
        spec: the network.
        num_classes: number of object classes, without background. Labels are 1 to num_classes; output 0 is
            the background (Faster R-CNN) or unused (RetinaNet), as in torchvision's own COCO models.
        weights: torchvision weights of the backbone, or empty.

    Returns:
        An instance of torchvision's own class, float32, in training mode.

    Raises:
        InputError: for an unknown backbone or weights.
    """
    outputs = num_classes + 1
    if spec.builder:
        detector = torchvision.models.get_model(spec.builder, weights=None, weights_backbone=None, num_classes=outputs)
    else:
        backbone = backbone_with_fpn(
            spec.backbone,
            detector=spec.detector,
            channels=spec.channels,
            width=spec.width,
            weights=weights,
            pyramid_norm=spec.pyramid_norm,
            freeze_norm=spec.freeze_norm,
            conventions=spec.conventions,
        )
        detector = (_faster_rcnn if spec.detector == "faster_rcnn" else _retinanet)(spec, backbone, outputs)
    if spec.conventions.norm_without_epsilon:
        for module in detector.backbone.modules():
            if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                module.eps = 0.0
    own = detector.transform
    detector.transform = NormalizeAndPad(own.min_size, own.max_size, own.image_mean, own.image_std)
    return detector


class NormalizeAndPad(GeneralizedRCNNTransform):
    """torchvision's detector transform for images, uint8 or float in 0..1, that are resized already."""

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        """The batch, and the targets as they are."""
        return normalised_batch(self, images), targets

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """Leave image and target as they are."""
        return image, target

    def postprocess(self, result: list[dict[str, Tensor]], *sizes: Any) -> list[dict[str, Tensor]]:
        """Leave the detections as they are, as the images are."""
        return result


def _faster_rcnn(spec: DetectorSpec, backbone: nn.Module, outputs: int) -> FasterRCNN:
    conventions = spec.conventions
    detector = FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors_of(spec),
        box_head=TwoMLPHead(spec.channels * 7 * 7, spec.head),
        box_predictor=FastRCNNPredictor(spec.head, outputs),
        rpn_pre_nms_top_n_train=2 * spec.proposals,
        rpn_pre_nms_top_n_test=conventions.candidates or spec.proposals,
        rpn_post_nms_top_n_train=spec.proposals,
        rpn_post_nms_top_n_test=spec.proposals,
        rpn_nms_thresh=conventions.proposal_overlap,
        box_score_thresh=conventions.least_score,
        box_nms_thresh=conventions.detection_overlap,
        box_batch_size_per_image=spec.rois,
        box_detections_per_img=spec.detections,
    )
    if conventions.roi_aligned:  # torchvision's module has no such option
        detector.roi_heads.box_roi_pool = ops.MultiScaleRoIAlign(
            ["0", "1", "2", "3"], 7, conventions.roi_sampling, aligned=True
        )
    else:
        detector.roi_heads.box_roi_pool.sampling_ratio = conventions.roi_sampling
    detector.rpn.min_size = conventions.smallest_proposal
    detector.rpn.box_coder = box_coder(conventions.anchor_weights, conventions)
    detector.roi_heads.box_coder = box_coder(conventions.box_weights, conventions)
    return detector


def _retinanet(spec: DetectorSpec, backbone: nn.Module, outputs: int) -> RetinaNet:
    conventions = spec.conventions
    ordered = conventions.clip_after_nms or conventions.empty_boxes != "kept"
    detector = (OrderedRetinaNet if ordered else RetinaNet)(
        backbone,
        outputs,
        anchor_generator=anchors_of(spec),
        score_thresh=conventions.least_score,
        nms_thresh=conventions.detection_overlap,
        detections_per_img=spec.detections,
        topk_candidates=conventions.candidates or 1000,
    )
    if ordered:
        detector.clip_after_nms, detector.empty_boxes = conventions.clip_after_nms, conventions.empty_boxes
    coder = box_coder(conventions.anchor_weights, conventions)
    detector.box_coder = detector.head.regression_head.box_coder = coder
    for part in (detector.head.classification_head, detector.head.regression_head):
        _keep_size(part.conv)
    return detector


def _keep_size(tower: nn.Module) -> None:
    """Draw weights of convolutions with a ReLU behind so that maps keep their size (He et al. 2015).

    With torchvision's deviation of 0.01 each layer of C channels leaves 0.01 (9 C / 2)^0.5 of it, 0.17 of 64 channels:
    through four of them nearly nothing comes for hundreds of steps.
    """
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def anchors_of(spec: DetectorSpec) -> Anchors:
    """The anchors that a detector has on its five levels, one of torchvision's `builder` not among them."""
    scales = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)) if spec.detector == "retinanet" else (1.0,)
    doubling = tuple(tuple(spec.anchor_size * 2**level * scale for scale in scales) for level in range(5))
    sizes = spec.conventions.anchor_sizes or doubling
    return Anchors(sizes, PYRAMID_STRIDES[spec.detector][0], spec.conventions)


def detector_from_weights(name: str, classes: tuple[str, ...]) -> tuple[DetectorSpec, FasterRCNN | RetinaNet]:
    """A detector with torchvision's published detection weights, its outputs reduced to the given classes.

    Args:
        name: full weights name, such as ``FasterRCNN_ResNet50_FPN_Weights.COCO_V1``.
        classes: class names of the data; each must be among the weights' categories.

    Raises:
        InputError: for unknown weights, another kind of detector than Faster R-CNN and RetinaNet, or a class
            that the weights do not know.
    """
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, AttributeError) as error:
        raise InputError(f"weights: expected a torchvision name like IMAGENET1K_V1; got {name!r}") from error
    builder = name.split("_Weights.")[0].lower()
    categories = list(weights.meta["categories"])
    unknown = [item for item in classes if item not in categories]
    if unknown:
        raise InputError(f"weights {name}: expected the data's classes, lacks {', '.join(unknown)}")
    full = torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=len(categories))
    if not isinstance(full, (FasterRCNN, RetinaNet)):
        raise InputError(f"weights {name}: expected a Faster R-CNN or a RetinaNet, got {type(full).__name__}")
    state = weights.get_state_dict(progress=False, check_hash=True)
    rows = torch.tensor([0] + [categories.index(item) for item in classes])
    spec = DetectorSpec(
        detector="faster_rcnn" if isinstance(full, FasterRCNN) else "retinanet",
        backbone="",
        builder=builder,
        conventions=Conventions(norm_without_epsilon=builder in WITHOUT_EPSILON and name.endswith("COCO_V1")),
    )
    detector = build_detector(spec, len(classes))
    detector.load_state_dict(select_outputs(state, rows, len(categories)))
    return spec, detector


def select_outputs(state: dict[str, torch.Tensor], rows: torch.Tensor, outputs: int) -> dict[str, torch.Tensor]:
    """Keep the given class outputs of a detector's state dict.

    Args:
        state: state dict of torchvision's Faster R-CNN or RetinaNet with `outputs` class outputs.
        rows: int64 [K+1], the outputs to keep, background first.
        outputs: class outputs of `state`.
    """
    per_class = ("cls_score.", "bbox_pred.", "cls_logits.")
    selected = dict(state)
    for name, value in state.items():
        if any(part in name for part in per_class) and "rpn" not in name:
            if "bbox_pred." in name or "cls_score." in name:  # class-major: [outputs * 4 or 1, ...]
                selected[name] = value.unflatten(0, (outputs, -1))[rows].flatten(0, 1)
            else:  # anchor-major: [anchors * outputs, ...]
                selected[name] = value.unflatten(0, (-1, outputs))[:, rows].flatten(0, 1)
    return selected
