"""Layers under mixed precision: what runs otherwise than under autocast alone, to the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_steps import CPU
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

from bench.step.launches import Launches
from gkd_fast import parallel
from gkd_fast.detectors.folding import activated_norms
from gkd_fast.training import mixed_layers
from gkd_fast.training.mixed_layers import MixedLayers


class Student(nn.Module):
    """A detector as far as its layers are looked at."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(8, 4, 1)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True)]
    layers += [nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))


def run(student: Student, images: Tensor, layers: MixedLayers | None) -> tuple[Tensor, list[Tensor]]:
    """The maps, and the gradients of all weights."""
    student.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if layers is None:
            maps = student.head(student.backbone(images))
        else:
            with layers:
                maps = student.head(student.backbone(images))
    maps.float().square().mean().backward()
    return maps.detach(), [w.grad.clone() for w in student.parameters() if w.grad is not None]


@pytest.mark.parametrize("channels_last", [True, False])
def test_numbers_are_those_of_autocast(channels_last: bool) -> None:
    found = []
    for own in (True, False):
        student = Student(small()).train()
        images = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
        images = images.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        layers = MixedLayers(CPU, torch.bfloat16, student) if own else None
        maps, gradients = run(student, images, layers)
        exact = Student(small()).train()
        truth = exact.head(exact.backbone(images))
        truth.square().mean().backward()
        wanted = [truth.detach(), *(w.grad for w in exact.parameters() if w.grad is not None)]
        got = [maps, *gradients]
        assert len(got) == len(wanted)
        found.append(
            [float((a.float() - b).norm() / b.norm().clamp(min=1e-4)) for a, b in zip(got, wanted, strict=True)]
        )
        for mine, other in zip(student.buffers(), exact.buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0.02, atol=0.01)
    # In the roundings of bfloat16, of which ours have no more.
    for mine, other in zip(*found, strict=True):
        assert mine <= 1.3 * other + 0.004


def test_weights_are_converted_and_batches_counted_in_one_launch() -> None:
    student = Student(small()).train()
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    layers = MixedLayers(CPU, torch.bfloat16, student)
    for step in (1, 2):
        with Launches() as launches:
            run(student, images, layers)
        assert launches.kernels["_foreach_copy_"] == 2  # the weights, their gradients
        assert launches.kernels["_foreach_add_"] == 1
        assert launches.kernels["add_"] == 0
        assert launches.kernels["clone"] == len(list(student.parameters()))  # of this test: none of a gradient
        counters = [norm.num_batches_tracked for norm in student.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert [int(counter) for counter in counters] == [step] * 3


def test_a_layer_that_runs_twice_counts_twice() -> None:
    student = Student(nn.Sequential(nn.BatchNorm2d(8))).train()
    with torch.autocast("cpu", dtype=torch.bfloat16), MixedLayers(CPU, torch.bfloat16, student):
        for _ in range(3):
            student.backbone(torch.randn(2, 8, 4, 4))
    assert student.backbone[0].num_batches_tracked == 3


def test_a_norm_without_momentum_counts_for_itself() -> None:
    student = Student(nn.Sequential(nn.BatchNorm2d(8, momentum=None))).train()
    maps = torch.randn(2, 8, 4, 4) + 3
    with torch.autocast("cpu", dtype=torch.bfloat16), MixedLayers(CPU, torch.bfloat16, student):
        student.backbone(maps)
    torch.testing.assert_close(student.backbone[0].running_mean, maps.mean((0, 2, 3)))


def test_several_processes_exchange_gradients_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    student = Student(small()).train()
    with Launches() as launches:
        run(student, torch.randn(2, 3, 16, 16), MixedLayers(CPU, torch.bfloat16, student))
    assert launches.kernels["_foreach_copy_"] == 0


@pytest.mark.parametrize(("network", "number"), [(mobilenet_v2, 35), (resnet18, 9)])
def test_norms_that_only_an_activation_sees(network: Callable[[], nn.Module], number: int) -> None:
    found = activated_norms(network())
    assert sum(isinstance(module, (nn.ReLU, nn.ReLU6)) for _, module in found) == number


def test_a_norm_that_others_see_keeps_its_output() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.act(y) - y

    student = Student(Branched()).train()
    maps = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16), MixedLayers(CPU, torch.bfloat16, student):
        assert (student.backbone(maps) > 0).any()


def test_norms_in_evaluation_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_layers, "batch_norm", lambda *_: pytest.fail("our batch normalisation"))
    student = Student(small()).eval()
    maps = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = student.backbone(maps)
        with torch.no_grad(), MixedLayers(CPU, torch.bfloat16, student):
            torch.testing.assert_close(student.backbone(maps), want, rtol=0.02, atol=0.02)


def test_frozen_networks_pool_without_places() -> None:
    maps = torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    pools = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((3, 2))]
    for pool in pools:
        for grad in (False, True):
            x = maps.clone().requires_grad_(grad)
            with torch.autocast("cpu", dtype=torch.bfloat16), MixedLayers(CPU, torch.bfloat16), Launches() as launches:
                found = pool(x)
            assert torch.equal(found, pool(x))
            own = pool in pools[:2] and not grad
            assert launches.kernels["max_pool"] == own
