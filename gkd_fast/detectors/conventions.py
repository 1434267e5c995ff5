"""Where detectors of one architecture differ between libraries, as values and as the parts that follow them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

Triple = tuple[float, float, float]
Weights = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What the weights of a detector take for granted; the defaults are torchvision's.

    What is only a matter of order (of classes, of anchors, of the background) is no convention here: imported weights
    are brought into torchvision's order, so that the outputs of any teacher and any student correspond.
    """

    image_mean: Triple = (123.675, 116.28, 103.53)
    """Subtracted from the red, green and blue values of 0 to 255."""
    image_std: Triple = (58.395, 57.12, 57.375)
    """What red, green and blue are then divided by."""
    bgr: bool = False
    """The network takes blue before green before red."""
    stride_in_1x1: bool = False
    """ResNet's bottlenecks halve the map in their first convolution, not in the one of 3x3."""
    rounded_anchors: bool = True
    """Anchors have whole-numbered sizes and corners."""
    measured_strides: bool = True
    """Anchors of a level lie floor(image side / map side) pixels apart, which is less than the level's stride where
    the map was rounded up; else the stride itself."""
    roi_aligned: bool = False
    """RoIAlign counts cell centres as samples (half a cell's shift)."""
    roi_sampling: int = 2
    """Sample points along a side of a RoIAlign bin; 0: as many as the bin has cells, rounded up."""
    box_weights: Weights = (10.0, 10.0, 5.0, 5.0)
    """Factors on the box head's offsets x, y, w, h: the inverse of their standard deviations (Faster R-CNN)."""
    limit_shrinking: bool = False
    """Boxes become at most 1000/16 times smaller by their offsets, as they become at most that much larger."""
    smallest_proposal: float = 1e-3
    """Proposals with a shorter side are left out, in pixels."""
    norm_without_epsilon: bool = False
    """Nothing is added to the variances of the backbone's batch normalisation."""
    anchor_sizes: tuple[tuple[float, ...], ...] = ()
    """Sides of the anchors of every level, in pixels; empty: as the detector's smallest anchors say."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights of the anchors of one size over their widths."""
    anchor_weights: Weights = (1.0, 1.0, 1.0, 1.0)
    """Factors on the offsets x, y, w, h from anchors (proposals; RetinaNet's boxes)."""
    candidates: int = 0
    """Boxes of a level that go into non-maximum suppression; 0: as many as there are to be proposals, and 1,000 of
    RetinaNet."""
    proposal_overlap: float = 0.7
    """Non-maximum suppression of proposals drops what overlaps more than this."""
    detection_overlap: float = 0.5
    """Non-maximum suppression of detections drops what overlaps more than this."""
    least_score: float = 0.05
    """Detections have a higher score."""
    clip_after_nms: bool = False
    """RetinaNet's boxes are clipped to the image after non-maximum suppression, not before."""
    empty_boxes: Literal["kept", "before_nms", "after_nms"] = "kept"
    """When RetinaNet's boxes without an area are dropped."""
    resize: Literal["antialiased", "opencv", "pillow", "torchvision"] = "antialiased"
    """Whose rule images are resized by, all bilinear: with antialiasing as in our training data; OpenCV's without it;
    Pillow's; torchvision's detectors', without it and without rounding to whole numbers."""
    extra_levels: Literal["p5", "c5"] = "p5"
    """Map from which RetinaNet's sixth level is computed: the fifth level, or the backbone's last stage."""
    relu_before_p7: bool = True
    """ReLU between RetinaNet's sixth and seventh level."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _tuples(getattr(self, field.name)))


def _tuples(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as tuples again."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


TORCHVISION = Conventions()
_EXACT: dict[str, Any] = {
    "rounded_anchors": False,
    "measured_strides": False,
    "roi_aligned": True,
    "roi_sampling": 0,
    "smallest_proposal": 1e-9,  # any box with an area
    "extra_levels": "c5",
}
_CAFFE: dict[str, Any] = {"bgr": True, "image_std": (1.0, 1.0, 1.0), "stride_in_1x1": True}
_MMDET: dict[str, Any] = {
    "limit_shrinking": True,
    "relu_before_p7": False,
    "empty_boxes": "before_nms",  # 2.x: after
    "resize": "opencv",
}
_DETECTRON2: dict[str, Any] = {"clip_after_nms": True, "empty_boxes": "after_nms", "resize": "pillow"}
CONVENTIONS = {
    "torchvision": TORCHVISION,
    # mmdet/configs/_base_/models, mmdet/models/task_modules (2.x: mmdet/core): AnchorGenerator, DeltaXYWHBBoxCoder
    "mmdet": Conventions(**_EXACT, **_MMDET),
    "mmdet-caffe": Conventions(**_EXACT, **_CAFFE, **_MMDET),
    # detectron2/config/defaults.py, modeling/anchor_generator.py, poolers.py, backbone/fpn.py, meta_arch/retinanet.py
    "detectron2": Conventions(**_EXACT, **_CAFFE, **_DETECTRON2),
    # configs/COCO-Detection/*_X_101_32x8d_*.yaml: other pixel statistics and STRIDE_IN_1X1 False
    "detectron2-resnext": Conventions(**_EXACT, **_DETECTRON2, bgr=True),
}


class InputConversion(nn.Module):
    """From a batch normalised by torchvision's statistics to what a network expects.

    Teacher and student then share one batch, whatever each was trained on. Padding is zero before and after: every
    library pads behind the normalisation, and no pixel of whole-numbered value is zero in all three channels there.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, conventions: Conventions) -> None:
        super().__init__()
        mean, std = (torch.tensor(values) for values in (conventions.image_mean, conventions.image_std))
        own_mean, own_std = (torch.tensor(values) for values in (TORCHVISION.image_mean, TORCHVISION.image_std))
        self.bgr = conventions.bgr
        self.register_buffer("scale", (own_std / std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((own_mean - mean) / std)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N,3,H,W], red first, to the same shape."""
        x = (x * self.scale + self.shift) * (x != 0).any(1, keepdim=True)
        return x.flip(1) if self.bgr else x


def converts_input(conventions: Conventions) -> bool:
    """Whether a network expects anything but torchvision's normalised images."""
    names = ("image_mean", "image_std", "bgr")
    return any(getattr(conventions, name) != getattr(TORCHVISION, name) for name in names)


def stride_in_first_convolution(body: nn.Module) -> None:
    """Move the stride of every bottleneck from its 3x3 convolution to the 1x1 before it, in place."""
    for block in body.modules():
        if isinstance(block, Bottleneck) and block.conv2.stride != (1, 1):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


class ExtraLevels(LastLevelP6P7):
    """RetinaNet's levels P6 and P7.

    Args:
        stage: channels of the backbone's last stage.
        channels: of the pyramid.
        conventions: which map P6 comes from, and whether a ReLU stands before P7.
    """

    def __init__(self, stage: int, channels: int, conventions: Conventions) -> None:
        from_pyramid = conventions.extra_levels == "p5"
        super().__init__(channels if from_pyramid else stage, channels)
        self.use_P5 = from_pyramid
        self.relu = conventions.relu_before_p7

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the maps and their names."""
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        p7 = self.p7(F.relu(p6) if self.relu else p6)
        return [*p, p6, p7], [*names, "p6", "p7"]


class Anchors(AnchorGenerator):
    """torchvision's anchors, with its two roundings as options.

    Args:
        sizes: sides of the anchors of every level, in pixels.
        stride: of the first level; it doubles with every level.
        conventions: the roundings, and the ratios.
    """

    def __init__(self, sizes: tuple[tuple[float, ...], ...], stride: int, conventions: Conventions) -> None:
        self.rounded = conventions.rounded_anchors
        self.stride = None if conventions.measured_strides else stride
        if self.rounded:
            sizes = tuple(tuple(int(side) for side in own) for own in sizes)
        super().__init__(sizes, (conventions.anchor_ratios,) * len(sizes))

    def generate_anchors(
        self,
        scales: list[float],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Anchors around the origin [ratios * scales,4], ratio by ratio; a ratio is height / width."""
        if self.rounded:
            return super().generate_anchors(scales, aspect_ratios, dtype, device)
        ratios = torch.as_tensor(aspect_ratios, dtype=torch.float64, device=device)[:, None].sqrt()
        sides = torch.as_tensor(scales, dtype=torch.float64, device=device)[None]
        widths, heights = (sides / ratios).flatten() / 2, (sides * ratios).flatten() / 2
        return torch.stack([-widths, -heights, widths, heights], 1).to(dtype)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of every image [A,4], level by level, cell by cell."""
        if self.stride is None:
            return super().forward(image_list, feature_maps)
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        # As tensors on the device, without a copy to it.
        strides = [
            [torch.full((), self.stride * 2**level, device=feature.device)] * 2
            for level, feature in enumerate(feature_maps)
        ]
        anchors = torch.cat(self.grid_anchors([feature.shape[-2:] for feature in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class SymmetricBoxCoder(BoxCoder):
    """torchvision's box coder with the limit of growing for shrinking, too."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Offsets [B,4K] on boxes [B,4] to boxes [B,4K]."""
        limits = torch.tensor([-torch.inf, -torch.inf, *(-self.bbox_xform_clip * w for w in self.weights[2:])])
        codes = rel_codes.unflatten(-1, (-1, 4)).clamp(min=limits.to(rel_codes)).flatten(-2)
        return super().decode_single(codes, boxes)


def box_coder(weights: Weights, conventions: Conventions) -> BoxCoder:
    """The coder of box offsets that are multiplied by `weights`."""
    return (SymmetricBoxCoder if conventions.limit_shrinking else BoxCoder)(weights)
