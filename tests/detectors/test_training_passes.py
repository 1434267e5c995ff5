"""Training passes against torchvision itself, with the same samples: losses and the gradients of all weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from keyed_sampler import draw_by_keys
from torch import Tensor, nn

from gkd_fast.detectors import DetectorSpec, adapt, build_detector
from gkd_fast.detectors.base import plain_targets
from gkd_fast.methods.gkd import GKDSettings
from gkd_fast.methods.gkd.bank import PrototypeBank
from gkd_fast.methods.gkd.robust import robust_distilling

DETECTORS = ["faster_rcnn", "retinanet"]
SIZES = [(64, 96), (70, 65), (61, 93), (96, 64)]


def make_model(detector: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    spec = {"detector": detector, "backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head": 16}
    spec["freeze_norm"] = True  # batch normalisation makes large differences of roundings
    model = build_detector(DetectorSpec(**{**spec, "proposals": 40, "rois": 16, **changes}), 3).train()
    for name, parameter in model.named_parameters():
        if name.endswith(("bbox_pred.weight", "bbox_reg.weight")):
            nn.init.normal_(parameter, std=0.05)
    return model


def make_batch(counts: list[int]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for number, count in enumerate(counts):
        height, width = SIZES[number % len(SIZES)]
        images.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
        corner = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) * 20], 1).round()
        labels = torch.randint(1, 4, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "draw": 17 * number + 5, "image_id": number})
    return images, targets


def torchvision_losses(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
    draw_by_keys(model, targets)
    return model([image / 255 for image in images], targets)


def gradients(model: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CASES = {
    "two images": [3, 2],
    "an empty image": [3, 0, 1],
    "only empty images": [0, 0],
    "a crowd": [60, 2],
    "one image": [4],
    "sixteen images": [1, 5, 0, 2, 9, 3, 1, 1, 0, 2, 4, 3, 2, 1, 6, 2],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_losses_and_gradients_are_torchvisions(detector: str, case: str) -> None:
    images, targets = make_batch(CASES[case])
    model, other = make_model(detector), make_model(detector)
    adapter = adapt(model)
    found = adapter.train_pass(adapter.batch(images), targets).losses
    wanted = torchvision_losses(other, images, targets)
    named = {name.removeprefix("loss_"): value for name, value in wanted.items()}
    assert {name.removeprefix("loss_") for name in found} == set(named)
    for name, value in found.items():
        torch.testing.assert_close(value, named[name.removeprefix("loss_")], rtol=1e-5, atol=1e-6)
    ours, theirs = gradients(model, found), gradients(other, wanted)
    assert set(ours) == set(theirs)
    for name, gradient in ours.items():
        scale = float(theirs[name].abs().max()) + 1e-12
        torch.testing.assert_close(gradient / scale, theirs[name] / scale, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_retinanets_other_box_losses(kind: str) -> None:
    images, targets = make_batch([3, 0])
    model, other = make_model("retinanet"), make_model("retinanet")
    for network in (model, other):
        network.head.regression_head._loss_type = kind
    adapter = adapt(model)
    found = adapter.train_pass(adapter.batch(images), targets).losses["loss_bbox_regression"]
    wanted = torchvision_losses(other, images, targets)["bbox_regression"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    ours, theirs = (gradients(n, {"box": loss}) for n, loss in ((model, found), (other, wanted)))
    name = "head.regression_head.bbox_reg.weight"
    torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("detector", DETECTORS)
def test_padded_truth_changes_nothing(detector: str) -> None:
    images, targets = make_batch([3, 0, 2])
    found = []
    for most in (None, 11):
        adapter = adapt(make_model(detector))
        padded = plain_targets(targets, torch.device("cpu"), most)
        own = adapter.train_pass(adapter.batch(images), padded)
        found.append((own.losses, gradients(adapter.model, own.losses)))
    for first, second in zip(*found, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_more_boxes_than_there_is_room_for_are_refused() -> None:
    _, targets = make_batch([3, 4])
    with pytest.raises(ValueError, match="targets: expected at most 3 boxes an image, got 4"):
        plain_targets(targets, torch.device("cpu"), 3)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("options", [{}, {"overlap": "last"}, {"one_stage_soft": "published"}, {"negative": "mirror"}])
def test_padding_of_instances_changes_no_term(detector: str, options: dict[str, Any]) -> None:
    images, targets = make_batch([3, 0, 4])
    student, teacher = adapt(make_model(detector)), adapt(make_model(detector, channels=24).eval())
    batch = student.batch(images)
    own = student.train_pass(batch, targets)
    teacher_pyramid = teacher.pyramid(batch)
    soft = student.soft_pairs(own, teacher, teacher_pyramid)
    adapted = [torch.nn.functional.pad(f, (0, 0, 0, 0, 0, 8)) for f in own.features]
    bank = PrototypeBank(
        student=torch.randn(5, 7, 16),
        teacher=torch.randn(5, 7, 24),
        class_offsets=torch.tensor([0, 3, 3, 7]),
        most=4,
        image_ids=torch.zeros(5, 7, dtype=torch.int64),
        boxes=torch.zeros(5, 7, 4),
        classes=("a", "b", "c"),
        strides=(4, 8, 16, 32, 64) if detector == "faster_rcnn" else (8, 16, 32, 64, 128),
    )
    real = own.instances.labels >= 0
    few = dataclasses.replace(own.instances, **{n: v[real] for n, v in vars(own.instances).items()})
    number = torch.where(real, real.cumsum(0) - 1, -1)
    instance = number[soft.instance.clamp(min=0)].where(soft.instance >= 0, -1)
    kept = instance >= 0
    rows = {n: v[kept] for n, v in vars(soft).items() if isinstance(v, Tensor)}
    compact = dataclasses.replace(soft, **{**rows, "instance": instance[kept]})
    stage = student.stage
    for given in (bank, None):
        terms, omega = zip(
            *(
                robust_distilling(
                    own.features,
                    adapted,
                    list(teacher_pyramid.values()),
                    instances,
                    pairs if given else None,
                    given,
                    GKDSettings(**options),
                    stage=stage,
                    kappa=1.0,
                    strides=(bank.strides, bank.strides),
                )
                for instances, pairs in ((own.instances, soft), (few, compact))
            ),
            strict=True,
        )
        for name, value in terms[0].items():
            assert value.isfinite()
            torch.testing.assert_close(value, terms[1][name], rtol=1e-5, atol=1e-7, msg=name)
        torch.testing.assert_close(omega[0][:, real], omega[1])
        assert (omega[0][:, ~real] == 0).all()
