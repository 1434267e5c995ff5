"""What a file's weights are, by their names and shapes: the library, the detector, the backbone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gkd_fast.errors import InputError

Library = Literal["mmdet", "detectron2", "torchvision"]
Detector = Literal["faster_rcnn", "retinanet"]
SUPPORTED = "expected a Faster R-CNN, a Mask R-CNN (without its masks) or a RetinaNet on a ResNet or ResNeXt with FPN"

_ROOTS = re.compile(r"(?<![\w])(backbone|neck|rpn_head|roi_head|bbox_head|proposal_generator|roi_heads|rpn|head)\.")

_BY_HOOKS = "which teaches through gkd_fast.Distiller (docs/integrations.md)"

# Names that mark a detector of another kind, the more particular before the more general.
_OTHERS = (
    (r"roi_head\.bbox_head\.\d\.|roi_heads\.box_(head|predictor)\.\d\.(fc|cls_score)", "a Cascade R-CNN"),
    (r"backbone\.res\d\.|roi_heads\.res5\.", "a C4 or DC5 detector, without a feature pyramid"),
    (r".*(keypoint_head|keypoint_predictor)\.", "a Keypoint R-CNN"),
    (r"(semantic_head|sem_seg_head|panoptic_fusion_head)\.", "a panoptic or semantic network"),
    (r"(rpn_head\.init_proposal|init_proposal_boxes)", "a Sparse R-CNN"),
    (r"rpn_head\.(conv_centerness|conv_cls|scales)", "a Faster R-CNN with proposals of FCOS"),
    (r"rpn_head\.(conv_loc|conv_shape|feature_adaption)", "a detector with guided anchoring"),
    (r"roi_head\.shared_head\.", "a C4 detector, without a feature pyramid"),
    (r"roi_head\.(grid_head|mask_iou_head)", "a detector with other heads"),
    (r"roi_heads\.box\.(feature_extractor|predictor)\.", "a detector of maskrcnn-benchmark"),
    (r"bbox_head\.shared_fcs\.", "a detector of mmdet before 2.0"),
    (r"bbox_head\.(tl|br)_", "a CornerNet"),
    (r"bbox_head\.atss_|head\.(cls_logits|centerness)\.", "an ATSS or PAA"),
    (r"bbox_head\.gfl_", "a GFL"),
    (r"bbox_head\.vfnet_", "a VarifocalNet"),
    (
        r"bbox_head\.(conv_centerness|conv_cls)|head\.(ctrness|fcos_|regression_head\.bbox_ctr)",
        "an FCOS, or a detector with its head",
    ),
    (r"bbox_head\.reppoints_", "a RepPoints"),
    (r"bbox_head\.(multi_level_|rtm_)", "a YOLOX or RTMDet"),
    (r"bbox_head\.(convs_bridge|convs_pred)", "a YOLOv3"),
    (r"bbox_head\.(heatmap_head|centerness)", "a CenterNet"),
    (r"(bbox_head\.)?(transformer|encoder|decoder|query_embedding|level_embed)\.?", "a DETR"),
    (r"model\.\d+\.", f"an Ultralytics network, {_BY_HOOKS}"),
    (r"model\.(backbone\.(conv_encoder|model)|encoder\.|decoder\.|enc_)", f"a transformers network, {_BY_HOOKS}"),
)
_PARTS = (
    (r"backbone\.(bottom_up\.)?(.*\.)?(conv\d_offset|conv\d\.conv_offset)", "deformable convolutions in the backbone"),
    (r"backbone\.features\.", "a VGG or MobileNet as backbone"),
    (r"backbone\.(stem\.0|bottom_up\.stem\.conv1_1)\.", "a ResNet-D stem"),
    (r"backbone\.layer\d\.\d+\.convs\.", "a Res2Net as backbone"),
    (r"backbone\.(stage\d|transition\d)\.", "an HRNet as backbone"),
    (r"backbone\.(bottom_up\.)?(patch_embed|stages|layers|norm\d)\.?", "a transformer, ConvNeXt, ... as backbone"),
    (r"backbone\.layer\d\.\d+\.conv\.\d", "a MobileNet as backbone"),
    (r"backbone\.layer\d\.\d+\.(context_block|gen_attention_block|conv2\.fc)", "attention in the backbone"),
    (r"backbone\.gn1|backbone\.layer\d\.\d+\.gn\d", "group normalisation (GN) in the backbone"),
    (r"neck\.\d\.", "a pyramid with further parts behind it (Libra, DyHead)"),
    (r"neck\.(pafpn_convs|downsample_convs|bottom_up_layers|stack|stages)", "a pyramid other than FPN"),
    (r"neck\..*\.(gn|bn)\.|backbone\.fpn_\w+\.norm", "normalisation in the pyramid"),
    (r"roi_head\.bbox_head\.(shared|cls|reg)_convs|roi_heads\.box_head\.conv\d", "convolutions in the box head"),
    (r"roi_head\.bbox_head\.(cls_fcs|reg_fcs)", "separate layers of classes and boxes in the box head"),
    (r"bbox_head\.(cls|reg)_convs\.\d\.(gn|bn|\d)", "normalisation in RetinaNet's heads"),
    (r"head\.(cls|bbox)_subnet\.([13579]|\d\d)\.", "normalisation in RetinaNet's heads"),
    (r"(rpn_head\.rpn_conv\.\d|proposal_generator\.rpn_head\.conv\.conv)", "several convolutions in the proposal head"),
)  # fmt: skip
_MASKS = re.compile(r"(roi_head\.mask_(head|roi_extractor)|roi_heads\.mask_(head|predictor))\.")
_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile
_COPIES = re.compile(r"ema_\w+")


@dataclass(frozen=True)
class Recognised:
    """What the weights are.

    Attributes:
        library: that wrote them.
        detector: its kind.
        backbone: torchvision's name; empty: of none that it has a name for.
        state: the weights that belong to it.
        notes: what was left out, a sentence each.
    """

    library: Library
    detector: Detector
    backbone: str
    state: dict[str, Tensor]
    notes: tuple[str, ...]

    @property
    def blocks(self) -> str:
        """The backbone's stages, in words."""
        stages = _stages(self.state, self.library)
        return f"a backbone of {' '.join(map(str, stages))} blocks" if stages else "no ResNet as backbone"


def recognise(state: dict[str, Tensor], prefix: str, origin: str) -> Recognised:
    """What the weights are.

    Args:
        state: weights by the names in the file.
        prefix: that the names of the wanted network start with; empty: none.
        origin: of the weights, for messages.

    Raises:
        InputError: one line, that says what the weights are, where they are anything else than supported.
    """
    _complain(list(state), _OTHERS, origin)
    state, notes = _own(state, prefix, origin)
    names = list(state)
    _complain(names, (*_OTHERS, *_PARTS), origin)
    library = _library(names)
    if library is None:
        if any(re.match(r"(rpn_head|proposal_generator)\.", name) for name in names):
            raise InputError(f"{origin}: a detector without a feature pyramid, C4 or DC5 ({_some(names)}); {SUPPORTED}")
        if any(re.match(r"roi_heads?\.", name) for name in names):
            raise InputError(f"{origin}: a Fast R-CNN, without the network of its proposals; {SUPPORTED}")
        alone = all(re.match(r"(backbone\.)?(stem|conv1|bn1|res\d|layer\d|fc|stages)\b", name) for name in names)
        what = "a backbone alone" if alone else "no detector that is known"
        raise InputError(f"{origin}: weights of {what} ({_some(names)}); {SUPPORTED}")
    masks = [name for name in names if _MASKS.match(name)]
    if masks:
        state = {name: value for name, value in state.items() if name not in set(masks)}
        notes.append(f"a Mask R-CNN, taken without its mask branch ({_some(masks)})")
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise InputError(f"{origin}: weights that are not finite ({_some(bad)})")
    heads = re.compile(r"(?:bbox_head\.cls_convs|head\.cls_subnet)\.(\d+)")
    towers = {match[1] for name in names if (match := heads.match(name))}
    if len(towers) not in (0, 4):
        raise InputError(f"{origin}: a RetinaNet with {len(towers)} convolutions in its heads, not 4; {SUPPORTED}")
    one_stage = any(name.startswith(("bbox_head.", "head.")) for name in state)
    detector: Detector = "retinanet" if one_stage else "faster_rcnn"
    return Recognised(library, detector, _backbone(state, library, origin), state, tuple(notes))


def _own(state: dict[str, Tensor], prefix: str, origin: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights behind the prefix, without the wrappers' ``module.`` and without copies by EMA hooks."""
    notes = []
    state = {name: value for name, value in state.items() if name != "n_averaged"}  # torch's AveragedModel
    while state and (wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in state)), "")):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    # mmcv's EMAHook exchanges the weights with their averages before it saves: the averages have the plain names.
    copies = [name for name in state if _COPIES.fullmatch(name)]
    if copies:
        notes.append(f"left out copies of the weights by an EMA hook ({_some(copies)})")
    kept = {name: value for name, value in state.items() if not _COPIES.fullmatch(name)}
    found = Counter(name[: root.start()] for name in kept if (root := _ROOTS.search(name)))
    shown = ", ".join(f"{name} ({count} weights)" for name, count in found.most_common() if name)
    if prefix:
        prefix = f"{prefix.rstrip('.')}."
        own = {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
        if not own:
            raise InputError(f"{origin}: --prefix {prefix}: expected one of {shown or 'none'}")
        if other := [name for name in kept if not name.startswith(prefix)]:
            notes.append(f"left out weights without the prefix {prefix} ({_some(other)})")
        return own, notes
    if shown and "" not in found:
        raise InputError(f"{origin}: names with prefixes: {shown}; --prefix takes the network of one of them")
    other = [name for name in kept if found and (root := _ROOTS.search(name)) and root.start()]
    if other:
        notes.append(f"left out weights with prefixes ({_some(other)}); --prefix takes them")
    return {name: value for name, value in kept.items() if name not in set(other)}, notes


def _complain(names: list[str], marks: Iterable[tuple[str, str]], origin: str) -> None:
    for pattern, what in marks:
        found = [name for name in names if re.match(pattern, name)]
        if found:
            raise InputError(f"{origin}: {what} ({_some(found)}); {SUPPORTED}")


def _some(names: list[str]) -> str:
    """The number of the names, and the first."""
    return f"{len(names)} names, the first {names[0]}" if names else "no names"


def _library(names: list[str]) -> Library | None:
    def there(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if there("backbone.body.", "backbone.fpn.") and there("roi_heads.", "head."):
        return "torchvision"
    if there("backbone.bottom_up.") and there("proposal_generator.", "head."):
        return "detectron2"
    if there("neck.") and there("rpn_head.", "bbox_head."):
        return "mmdet"
    return None


_BLOCKS = {
    "mmdet": r"backbone\.layer(\d)\.(\d+)\.conv1\.weight",
    "detectron2": r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv1\.weight",
    "torchvision": r"backbone\.body\.layer(\d)\.(\d+)\.conv1\.weight",
}
_MIDDLE = {
    "mmdet": "backbone.layer1.0.conv2.weight",
    "detectron2": "backbone.bottom_up.res2.0.conv2.weight",
    "torchvision": "backbone.body.layer1.0.conv2.weight",
}
_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_SHALLOW: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
_WIDE = {
    (1, 128): "wide_resnet{}_2",
    (32, 4): "resnext{}_32x4d",
    (32, 8): "resnext{}_32x8d",
    (64, 4): "resnext{}_64x4d",
}
_KNOWN = {
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
}


def _backbone(state: dict[str, Tensor], library: Library, origin: str) -> str:
    """torchvision's name of the backbone, by its numbers of blocks and the shape of a convolution; empty: none."""
    stages = _stages(state, library)
    middle = state.get(_MIDDLE[library])
    if not stages or middle is None:
        return ""
    if library != "torchvision" and not any(n.startswith("backbone.") and n.endswith("running_mean") for n in state):
        raise InputError(f"{origin}: group normalisation (GN), or none, in the backbone; {SUPPORTED}")
    groups = middle.shape[0] // middle.shape[1]
    shape = groups, middle.shape[0] // groups
    last = _MIDDLE[library].replace("conv2", "conv3")
    depth = (_DEPTHS if last in state else _SHALLOW).get(stages)
    name = "resnet{}" if shape == (1, 64) else _WIDE.get(shape, "")
    name = name.format(depth) if depth else ""
    return name if name in _KNOWN else ""


def _stages(state: dict[str, Tensor], library: Library) -> tuple[int, ...]:
    """Numbers of blocks of the stages."""
    found = [match for name in state if (match := re.fullmatch(_BLOCKS[library], name))]
    return tuple(count for _, count in sorted(Counter(match[1] for match in found).items()))
