"""What a step asks of the device, the layout it trains in, gradient norms and balanced terms."""

from __future__ import annotations

import pytest
import torch
from tiny_steps import make_config, make_step
from torchvision.ops import FrozenBatchNorm2d

from bench.step.launches import Launches
from gkd_fast.detectors.backbones import FrozenNorm, backbone_with_fpn
from gkd_fast.detectors.folding import fold_batch_norm


def test_what_waits_is_seen() -> None:
    with Launches() as launches:
        x = torch.arange(4.0)
        float(x.sum())
        x[x > 1]
        torch.where(x > 1)
    assert [wait.split(":")[0] for wait in launches.waits] == ["_local_scalar_dense", "index", "nonzero"]
    with Launches() as launches:
        x[x > 1] = 0.0
        x.view(2, 2).t().add_(1)
        torch.empty(3)
    assert launches.waits == []
    assert sum(launches.kernels.values()) == 3  # the comparison, the fill, the sum


def test_networks_and_images_are_channels_last() -> None:
    step, batches = make_step(make_config())
    step(batches[0], 1.0)
    networks = [step.adapter.model, step.distiller.teacher, step.distiller.methods]
    for parameter in (p for network in networks for p in network.parameters() if p.dim() == 4):
        assert parameter.is_contiguous(memory_format=torch.channels_last)
    images, _ = step.prepare(batches[0])
    assert images.tensors.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_frozen_norm_is_torchvisions_in_one_operator(eps: float) -> None:
    torch.manual_seed(0)
    theirs, own = FrozenBatchNorm2d(8, eps=eps), FrozenNorm(8, eps=eps)
    for buffer in theirs.buffers():
        buffer.uniform_(0.5, 2)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 5, 7).to(memory_format=torch.channels_last)
    found = []
    for norm in (theirs, own):
        own_x = x.clone().requires_grad_()
        y = norm(own_x)
        y.square().sum().backward()
        found.append((y, own_x.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    x = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16), Launches() as launches:
        assert own(x).dtype == torch.bfloat16
    assert dict(launches.kernels) == {"native_batch_norm": 1}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_folded_batch_norm_gives_the_same_pyramid(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    network = backbone_with_fpn(
        name, detector="faster_rcnn", channels=8, pyramid_norm=not frozen, freeze_norm=frozen
    ).eval()
    norms = [module for module in network.modules() if getattr(module, "running_mean", None) is not None]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    network.requires_grad_(False)
    x = torch.randn(1, 3, 64, 96)
    before = network(x)
    count = fold_batch_norm(network)
    left = [module for module in network.modules() if getattr(module, "running_mean", None) is not None]
    assert count == len(norms) - len(left)
    assert count > 0.4 * len(norms)
    for level, value in network(x).items():
        assert (value - before[level]).norm() < 1e-5 * before[level].norm()


def test_gradient_norms_are_those_of_each_term_alone() -> None:
    step, batches = make_step(make_config("retinanet", run={"grad_norm_steps": 2}))
    terms = step(batches[0], 1.0)
    first = dict(step.norms)
    assert set(first) == {*terms, "loss"}
    assert all(value > 0 for value in first.values())
    step(batches[1], 1.0)
    assert step.norms == {}

    other, _ = make_step(make_config("retinanet"))
    images, targets = other.prepare(batches[0])
    own = other.student_pass(images, targets)
    foreground = other.distil(own, images, 1.0)["gkd_foreground"]
    gradients = torch.autograd.grad(foreground, own.features)
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    torch.testing.assert_close(first["gkd_foreground"], expected, rtol=1e-3, atol=1e-7)


def test_balanced_terms_have_the_ratio_asked_for() -> None:
    config = make_config("retinanet", distill={"auto_balance": True, "balance_ratio": 0.5}, run={"grad_norm_steps": 1})
    step, batches = make_step(config)
    plain, _ = make_step(make_config("retinanet"))
    balanced, terms = step(batches[0], 1.0), plain(batches[0], 1.0)
    for name in ("gkd_foreground", "gkd_background"):
        weight = balanced[name] / terms[name]
        torch.testing.assert_close(weight * step.norms[name], 0.5 * step.norms["loss"], rtol=1e-2, atol=1e-6)
    for name in ("loss_classification", "loss_bbox_regression"):
        torch.testing.assert_close(balanced[name], terms[name], rtol=1e-4, atol=1e-6)


def test_balance_comes_back_with_the_state() -> None:
    config = make_config("retinanet", distill={"auto_balance": True})
    step, batches = make_step(config)
    step(batches[0], 1.0)
    other, _ = make_step(config)
    other.load_state_dict(step.state_dict())
    assert other.steps == 1
    assert other.balance.weights == step.balance.weights
