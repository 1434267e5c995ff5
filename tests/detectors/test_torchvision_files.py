"""torchvision's own detectors by file: the converted one finds what torchvision's finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import FrozenBatchNorm2d

import gkd_fast
from gkd_fast.convert import Source, convert, convert_file
from gkd_fast.detectors.foreign_files import ForeignCheckpoint
from gkd_fast.errors import InputError

CATEGORIES = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
SIDES = {"min_size": 128, "max_size": 200}
CASES = [  # builder, outputs, as published (frozen normalisation without epsilon)
    ("fasterrcnn_resnet50_fpn", 91, True),
    ("fasterrcnn_resnet50_fpn_v2", 91, False),
    ("fasterrcnn_mobilenet_v3_large_fpn", 91, False),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 91, False),
    ("maskrcnn_resnet50_fpn", 91, True),
    ("maskrcnn_resnet50_fpn_v2", 91, False),
    ("retinanet_resnet50_fpn", 91, True),
    ("retinanet_resnet50_fpn_v2", 5, False),
    ("fasterrcnn_resnet50_fpn", 5, True),  # trained on from the published one
]


def published(builder: str, outputs: int, *, frozen: bool) -> nn.Module:
    """Random weights in the network that torchvision builds for its published ones."""
    torch.manual_seed(0)
    frozen_norm = {"norm_layer": FrozenBatchNorm2d} if frozen else {}
    kind = {"weights": None, "weights_backbone": None, "num_classes": outputs}
    model = getattr(detection, builder)(**kind, **({} if "320" in builder else SIDES))
    if frozen_norm:
        _freeze(model.backbone.body)
        overwrite_eps(model, 0.0)
    for name, value in model.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.001, 0.01) if frozen else value.uniform_(0.5, 1.5)
    for name, value in model.named_parameters():
        if "bn" in name and name.endswith("weight"):
            value.data.uniform_(0.02, 0.05)
        if ("cls_score" in name or "cls_logits" in name) and "rpn" not in name:
            value.data.normal_(-1.0 if "logits" in name and "bias" in name else 0.0, 0.05 if "weight" in name else 1.0)
    if builder.endswith("rcnn_resnet50_fpn_v2"):  # whose box head's outputs are small
        model.roi_heads.box_predictor.cls_score.weight.data *= 20
    _silence(model, outputs)
    return model.eval()


def _silence(model: nn.Module, outputs: int) -> None:
    """Outputs without a class never win, as in trained networks."""
    without = [0] if outputs != 91 else [index for index, name in enumerate(CATEGORIES) if not index or name == "N/A"]
    if hasattr(model, "roi_heads"):  # where output 0 is the background
        model.roi_heads.box_predictor.cls_score.bias.data[without[1:]] = -40.0
    else:
        model.head.classification_head.cls_logits.bias.data.view(-1, outputs)[:, without] = -40.0


def _freeze(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features)
            frozen.weight.copy_(torch.empty_like(frozen.weight).uniform_(0.02, 0.05))
            setattr(module, name, frozen)
        else:
            _freeze(child)


@pytest.mark.parametrize(("builder", "outputs", "frozen"), CASES)
def test_the_converted_detector_finds_what_torchvisions_finds(
    builder: str, outputs: int, frozen: bool, tmp_path: Path
) -> None:
    model = published(builder, outputs, frozen=frozen)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    names = () if outputs == 91 else ("a", "b", "c", "d")
    sides = {"short_side": 320} if "320" in builder else {"short_side": 128, "long_side": 200}
    source = Source(classes=names, **sides, norm_epsilon="none" if frozen and outputs != 91 else "auto")
    done = convert_file(tmp_path / "theirs.pth", tmp_path / "ours.pt", source)
    assert done.spec.builder == builder.replace("mask", "faster")
    assert len(done.classes) == (80 if outputs == 91 else 4)
    ours = gkd_fast.load(tmp_path / "ours.pt")
    known = [CATEGORIES.index(name) for name in done.classes] if outputs == 91 else [1, 2, 3, 4]
    image = torch.rand(3, 150, 210)
    with torch.no_grad():
        theirs, found = model([image])[0], ours([image])[0]
    assert len(found["labels"]) > 20
    assert [known[label - 1] for label in found["labels"].tolist()] == theirs["labels"].tolist()
    torch.testing.assert_close(found["scores"], theirs["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["boxes"], theirs["boxes"], rtol=1e-4, atol=2e-2)


def test_epsilon_matters() -> None:
    model = published("retinanet_resnet50_fpn", 91, frozen=True)
    done = convert(ForeignCheckpoint(model.state_dict(), (), ""), Source(), "x.pth")
    assert done.spec.conventions.norm_without_epsilon
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = model.backbone.body(image)["0"], done.model.backbone.body(image)["0"]
        torch.testing.assert_close(ours, theirs)
        for module in done.model.backbone.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5
        assert not torch.allclose(done.model.backbone.body(image)["0"], theirs, rtol=1e-3)


def test_what_is_not_torchvisions_own_is_refused() -> None:
    state = published("retinanet_resnet50_fpn", 4, frozen=False).state_dict()
    with pytest.raises(InputError, match="3 classes without names; --classes gives them"):
        convert(ForeignCheckpoint(state, (), ""), Source(), "x.pth")
    with pytest.raises(InputError, match="--classes: expected the checkpoint's 3 names, got 2"):
        convert(ForeignCheckpoint(state, (), ""), Source(classes=("a", "b")), "x.pth")
    other = {**state, "head.classification_head.conv.0.0.weight": torch.zeros(8, 256, 3, 3)}
    with pytest.raises(InputError, match="a torchvision retinanet of none of its builders"):
        convert(ForeignCheckpoint(other, (), ""), Source(classes=("a", "b", "c")), "x.pth")
