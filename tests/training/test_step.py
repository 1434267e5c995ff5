"""What a step asks of the device, the layout it trains in, gradient norms and balanced terms."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_steps import make_config, make_step
from torch.utils._python_dispatch import TorchDispatchMode

from gkd_fast.detectors.backbones import backbone_with_fpn
from gkd_fast.detectors.folding import fold_batch_norm

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "is_nonzero", "equal", "nms"}


class Waits(TorchDispatchMode):
    """Collects the files whose operators would make the host wait for a GPU: results or sizes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        masks = (torch.bool, torch.uint8)
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in masks for index in args[1]
        )
        if name == "index_put_" and args[2].numel() == 1:  # a fill under a mask
            by_mask = False
        if name in WAITING or by_mask:
            files = [frame.filename for frame in traceback.extract_stack()]
            own = [file for file in files if "/torch/" not in file and file != __file__]
            self.found.append(own[-1])
        return function(*args, **(kwargs or {}))


def waits(detector: str, **run: int) -> list[str]:
    step, batches = make_step(make_config(detector, run=run, distill={"prototypes_from": "harvest"}))
    step(batches[0], 1.0)
    with Waits() as mode:
        step(batches[1], 1.0)
    return mode.found


def test_a_one_stage_step_does_not_wait() -> None:
    assert waits("retinanet", grad_norm_steps=1) == []


def test_a_two_stage_step_waits_in_the_detector_alone() -> None:
    found = waits("faster_rcnn", grad_norm_steps=1)
    assert found
    assert all("/detectors/" in file or "/torchvision/" in file for file in found)


def test_networks_and_images_are_channels_last() -> None:
    step, batches = make_step(make_config())
    step(batches[0], 1.0)
    networks = [step.adapter.model, step.distiller.teacher, step.distiller.methods]
    for parameter in (p for network in networks for p in network.parameters() if p.dim() == 4):
        assert parameter.is_contiguous(memory_format=torch.channels_last)
    images, _ = step.prepare(batches[0])
    assert images.tensors.is_contiguous(memory_format=torch.channels_last)


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
