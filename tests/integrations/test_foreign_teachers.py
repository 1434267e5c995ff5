"""Detectors of Ultralytics and transformers as teachers of torchvision's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import batched_nms

from gkd_fast.integrations.foreign import SoftLabels, Teacher
from gkd_fast.integrations.torchvision import Distiller

NAMES = ("ant", "bee", "cow")
KINDS = ["yolo11", "yolo26", "rt_detr_v2", "d_fine", "detr"]


def student(kind: str = "faster_rcnn") -> nn.Module:
    torch.manual_seed(0)
    features = mobilenet_v2(width_mult=0.25).features
    channels = [features[index].conv[-1].num_features for index in (3, 6, 13)] + [features[18][1].num_features]
    body = BackboneWithFPN(features, {"3": "0", "6": "1", "13": "2", "18": "3"}, channels, 16)
    anchors = AnchorGenerator([(8 * 2**level,) for level in range(5)], [(0.5, 1.0, 2.0)] * 5)
    given = {"rpn_anchor_generator" if kind == "faster_rcnn" else "anchor_generator": anchors}
    made = {"faster_rcnn": FasterRCNN, "retinanet": RetinaNet}[kind]
    return made(body, num_classes=4, min_size=96, max_size=128, **given).train()


def teacher(kind: str, names: tuple[str, ...] = ("cow", "dog", "ant", "bee")) -> Teacher:
    torch.manual_seed(1)
    if kind.startswith("yolo"):
        tasks = pytest.importorskip("ultralytics.nn.tasks")
        from gkd_fast.integrations.ultralytics import as_teacher

        network = tasks.DetectionModel(f"{kind}n.yaml", nc=len(names), verbose=False)
        network.names = dict(enumerate(names))
        return as_teacher(network)
    transformers = pytest.importorskip("transformers")
    from gkd_fast.integrations.transformers import as_teacher

    if kind == "d_fine":
        example = pytest.importorskip("transformers_dfine")
        network = example.network(16, names)
        for value in network.parameters():
            if value.dim() > 1:  # whose own start leaves its maps without a signal
                nn.init.normal_(value, 0, value[0].numel() ** -0.5)
        return as_teacher(network)
    if kind == "rt_detr_v2":
        stages = {"hidden_sizes": [16, 16, 32, 64], "out_features": ["stage2", "stage3", "stage4"]}
        body = transformers.RTDetrResNetConfig(embedding_size=16, depths=[1] * 4, layer_type="basic", **stages)
        config = transformers.RTDetrV2Config(backbone_config=body, encoder_in_channels=[16, 32, 64])
        config.d_model = config.encoder_hidden_dim = config.encoder_ffn_dim = config.decoder_ffn_dim = 32
        config.decoder_in_channels, config.decoder_layers, config.num_queries = [32] * 3, 2, 20
        config.id2label = dict(enumerate(names))
        return as_teacher(transformers.RTDetrV2ForObjectDetection(config))
    body = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 16, 32, 64], depths=[1] * 4)
    body.layer_type, body.out_features = "basic", ["stage4"]
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 4}
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=body, encoder_layers=1, decoder_layers=1,
        decoder_attention_heads=4, num_queries=10, id2label=dict(enumerate(names)), **sizes,
    )  # fmt: skip
    return as_teacher(transformers.DetrForObjectDetection(config))


@pytest.fixture
def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(2)
    boxes = [torch.tensor([[8.0, 12, 60, 70], [40, 4, 120, 90]]), torch.tensor([[20.0, 30, 90, 80]])]
    labels = [torch.tensor([1, 3]), torch.tensor([2])]
    images = [torch.rand(3, 96, 128), torch.rand(3, 96, 96)]
    return images, [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]


@pytest.mark.parametrize("architecture", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_distilled(kind: str, architecture: str, batch) -> None:
    network, foreign = student(architecture), teacher(kind)
    distiller = Distiller(foreign, network, NAMES, min_box=4, refresh_steps=1)
    levels = 1 if kind == "detr" else 3
    assert len(distiller._student.layers) == levels
    for _ in range(3):
        network.zero_grad()
        network(*batch)
        terms = distiller(*batch)
        sum(terms.values()).backward()
    assert {"gkd_global", "gkd_foreground", "gkd_background"} <= set(terms)
    assert any("soft" in name or "logit" in name for name in terms), terms
    assert all(torch.isfinite(value) for value in terms.values())
    gradient = network.backbone.fpn.inner_blocks[-1][0].weight.grad.abs().sum()
    assert torch.isfinite(gradient)
    assert gradient > 0
    copy.deepcopy(network)
    pickle.dumps(network)
    distiller.remove()
    assert not network.backbone._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_sees_its_own_pixels_and_says_what_its_library_says(kind: str, batch) -> None:
    foreign = teacher(kind)
    network = student()
    distiller = Distiller(foreign, network, NAMES, min_box=4)
    seen = []
    foreign.network.register_forward_pre_hook(
        lambda _, inputs, named: seen.append(named.get("pixel_values", *inputs)), with_kwargs=True
    )
    network(*batch)
    distiller(*batch)
    (image, _), (pixels,) = batch[0], seen[-1:]
    mean, std = (torch.tensor(values)[:, None, None] for values in (foreign.mean, foreign.std))
    own = pixels[0] * std + mean
    torch.testing.assert_close(own, image, rtol=1e-4, atol=1e-4)
    edge = pixels[1][:, :, 96:]
    expected = torch.zeros(()) if foreign.padding is None else torch.tensor(foreign.padding)
    torch.testing.assert_close(edge, expected.expand_as(edge), rtol=1e-4, atol=1e-4)
    boxes, logits = foreign.predict(foreign.network, pixels)
    with torch.no_grad():
        theirs = foreign.network(pixels)
    if kind == "yolo11":
        torch.testing.assert_close(logits.sigmoid(), theirs[0][:, 4:].transpose(1, 2))
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        torch.testing.assert_close(centre, theirs[0][:, :2].transpose(1, 2))
    elif not kind.startswith("yolo"):
        torch.testing.assert_close(logits, theirs.logits)
        torch.testing.assert_close(boxes[..., 2] - boxes[..., 0], theirs.pred_boxes[..., 2] * pixels.shape[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_its_predictions_are_the_detections_of_its_library(kind: str) -> None:
    foreign = teacher(kind)
    pixels = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        boxes, logits = (part[0] for part in foreign.predict(foreign.network, pixels))
    scores = logits.softmax(1)[:, :-1] if foreign.exclusive else logits.sigmoid()
    if kind.startswith("yolo"):
        theirs, kept = _suppressed(foreign, pixels, boxes, scores)
        best, labels = scores.max(1)
        scores, labels, boxes = best[kept], labels[kept], boxes[kept]
    else:
        theirs = _post_processed(kind, foreign, pixels)
        scores, index = scores.max(1) if foreign.exclusive else scores.flatten().topk(len(boxes))
        labels = index if foreign.exclusive else index % len(foreign.classes)
        boxes = boxes if foreign.exclusive else boxes[index // len(foreign.classes)]
    assert len(theirs["scores"]) == len(scores) >= 10
    assert torch.equal(theirs["labels"].long(), labels)
    torch.testing.assert_close(theirs["scores"], scores, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(theirs["boxes"], boxes, rtol=1e-4, atol=1e-3)


def _suppressed(foreign: Teacher, pixels: Tensor, boxes: Tensor, scores: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What Ultralytics' own suppression leaves, and what torchvision's leaves of ours."""
    nms = pytest.importorskip("ultralytics.utils.nms")
    head = foreign.network.model[-1]
    least = scores.max(1).values.median().item()
    ending = getattr(head, "end2end", False)
    head.end2end = False
    with torch.no_grad():
        found = nms.non_max_suppression(foreign.network(pixels)[0], least, 0.7, max_det=300)[0]
    head.end2end = ending
    best, labels = scores.max(1)
    kept = torch.where(best > least)[0]
    kept = kept[batched_nms(boxes[kept], best[kept], labels[kept], 0.7)]
    return {"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5]}, kept


def _post_processed(kind: str, foreign: Teacher, pixels: Tensor) -> dict[str, Tensor]:
    """What transformers' own image processor makes of the network's outputs."""
    transformers = pytest.importorskip("transformers")
    made = transformers.DetrImageProcessor if kind == "detr" else transformers.RTDetrImageProcessor
    with torch.no_grad():
        outputs = foreign.network(pixel_values=pixels)
    return made().post_process_object_detection(outputs, threshold=-1.0, target_sizes=[tuple(pixels.shape[-2:])])[0]


class Known(nn.Module):
    """A teacher of one prediction an image."""


def soft_labels(architecture: str, *, exclusive: bool) -> SoftLabels:
    logits = torch.tensor([[[1.0, 9.0, 2.0, 3.0, 0.5]], [[4.0, 9.0, 5.0, 6.0, 0.5]]])
    foreign = Teacher(Known(), ["x"], ("cow", "dog", "ant", "bee"), lambda *_: None, exclusive=exclusive)
    soft = SoftLabels(student(architecture), foreign, NAMES)
    soft.predicted = torch.tensor([[[0.0, 0, 40, 40]], [[50.0, 50, 90, 90]]]), logits if exclusive else logits[..., :4]
    return soft


@pytest.mark.parametrize("architecture", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("exclusive", [False, True])
def test_soft_labels_match_classes_by_name(architecture: str, exclusive: bool) -> None:
    soft = soft_labels(architecture, exclusive=exclusive)
    boxes = torch.tensor([[0.0, 0, 40, 38], [50.0, 50, 90, 90], [0.0, 0, 5, 5]])
    found, sure = soft._asked(boxes, torch.tensor([0, 1, 1]))
    assert sure.tolist() == [True, True, False]
    raw = torch.tensor([[2.0, 3.0, 1.0], [5.0, 6.0, 4.0]])  # ant, bee, cow
    if architecture == "faster_rcnn":
        expected = raw if exclusive else torch.nn.functional.logsigmoid(raw)
    else:
        whole = torch.tensor([[1.0, 9.0, 2.0, 3.0, 0.5], [4.0, 9.0, 5.0, 6.0, 0.5]]).softmax(1)[:, [2, 3, 0]]
        expected = torch.logit(whole) if exclusive else raw
    torch.testing.assert_close(found[:2], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["yolo11", "detr"])
def test_a_short_training_comes_nearer_to_the_teacher(kind: str, batch) -> None:
    network, foreign = student("retinanet"), teacher(kind)
    distiller = Distiller(foreign, network, NAMES, min_box=4, refresh_steps=1)
    before = {name: value.clone() for name, value in foreign.network.state_dict().items()}
    optimizer = torch.optim.SGD([*network.parameters(), *distiller.parameters()], 0.02, momentum=0.9)
    totals = []
    for _ in range(12):
        optimizer.zero_grad()
        losses = network(*batch)
        terms = distiller(*batch)
        (sum(losses.values()) + sum(terms.values())).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        totals.append(sum(terms.values()).item())
    assert sum(totals[-3:]) < 0.8 * sum(totals[1:4]), totals
    assert all(torch.equal(value, before[name]) for name, value in foreign.network.state_dict().items())


def test_what_does_not_fit_is_named() -> None:
    foreign = Teacher(Known(), ["x"], ("dog",), lambda *_: None, exclusive=False)
    with pytest.raises(ValueError, match="expected classes among ant, bee, cow, got dog"):
        SoftLabels(student(), foreign, NAMES)
    some = Teacher(Known(), ["x"], ("ant",), lambda *_: None, exclusive=False)
    with pytest.warns(UserWarning, match="2 of 3 classes are unknown to the teacher, the first bee"):
        assert SoftLabels(student(), some, NAMES).own == [1]
