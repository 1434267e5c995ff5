"""Feature losses in units of the teacher: free of its scale, of the channels' number and of the map's size."""

from __future__ import annotations

import copy

import pytest
import torch
from own_networks import Network, make_boxes, make_images, make_pair, own_loss, train_step
from torch import Tensor, nn

from gkd_fast.distiller import Distiller
from gkd_fast.methods.units import TeacherUnits, channel_factor, image_factor, pixel_factor

# Their terms compare channels' correlations or relations, or are probabilities: those were free of the scale before.
OF_FEATURES = ("gkd", "defeat", "fbkd", "fgd", "mgd", "cwd")


class Scaled(nn.Module):
    """A network whose maps are multiplied, as those of a teacher that was trained elsewhere."""

    def __init__(self, network: Network, factor: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(level, Times(factor)) for level in network.levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level(images) for level in self.levels]


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, feature: Tensor) -> Tensor:
        return feature * self.factor


def first_terms(factor: float, **options) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The terms of the first step under a teacher of large maps, and their gradients on the student."""
    torch.manual_seed(0)
    network, student = Network((24, 24, 24)), Network()
    _, student, distiller = make_pair(student, Scaled(network, factor), **options)
    torch.manual_seed(1)
    terms = train_step(student, distiller)
    return terms, [parameter.grad for parameter in student.parameters()]


@pytest.mark.parametrize("method", OF_FEATURES)
def test_terms_are_free_of_the_teachers_scale(method: str) -> None:
    terms, gradients = first_terms(1.0, method=method)
    others, other_gradients = first_terms(32.0, method=method)
    for name, value in terms.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: name + text)
    for own, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", OF_FEATURES)
def test_published_units_are_the_maps_own(method: str) -> None:
    terms, _ = first_terms(1.0, method=method, feature_units="published")
    others, _ = first_terms(32.0, method=method, feature_units="published")
    assert any(others[name].item() > 2 * value.item() for name, value in terms.items())


@pytest.mark.parametrize("method", ["gkd", "defeat", "fbkd", "fgd", "mgd"])
def test_terms_are_free_of_the_channels_number(method: str) -> None:
    """Repeating every channel of both networks changes no mean over channels."""
    terms = {}
    for copies in (1, 3):
        torch.manual_seed(0)
        student, teacher = (repeated(own, copies) for own in [Network((8, 8, 8)), Network((8, 8, 8))])
        distiller = make_pair(student, teacher, method=method)[2]
        for module in distiller.methods.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        torch.manual_seed(1)
        terms[copies] = train_step(student, distiller)
    for name, value in terms[1].items():
        torch.testing.assert_close(terms[3][name], value, rtol=1e-4, atol=1e-7)


def repeated(network: Network, copies: int) -> Network:
    """A network with every channel of its levels several times."""
    wide = copy.deepcopy(network)
    for level in wide.levels:
        convolution = level[0]
        convolution.weight = nn.Parameter(convolution.weight.repeat(copies, 1, 1, 1))
        convolution.bias = nn.Parameter(convolution.bias.repeat(copies))
    wide.heads = nn.ModuleList(nn.Conv2d(8 * copies, 3, 1) for _ in wide.levels)
    return wide


def test_sums_become_those_of_the_published_size() -> None:
    units = TeacherUnits()
    units.add([torch.randn(2, 64, 4, 4)])
    found = units.units()
    images = torch.zeros(4, 3, 400, 672)
    assert pixel_factor(found, images) == 4
    assert image_factor(found, images) == 0.5
    assert channel_factor(found, torch.zeros(4, 64, 1, 1)) == 4
    assert pixel_factor(None, images) == image_factor(None, images) == channel_factor(None, images) == 1


def test_units_are_mean_and_deviation_of_the_first_steps() -> None:
    torch.manual_seed(0)
    steps = [[3 + 2 * torch.randn(2, 5, 8, 8), torch.randn(2, 7, 4, 4)] for _ in range(3)]
    units = TeacherUnits(steps=2)
    for maps in steps:
        units.add(maps)
    found = units.units()
    for level in range(2):
        seen = torch.cat([maps[level] for maps in steps[:2]])
        torch.testing.assert_close(found.means[level], seen.mean((0, 2, 3)))
        variance = seen.var((0, 2, 3), correction=0).mean()
        torch.testing.assert_close(found.deviations[level], variance.sqrt())


def test_a_step_that_is_not_finite_counts_nothing() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 4, 4)]
    alone, both = TeacherUnits(), TeacherUnits()
    alone.add(maps)
    both.add([maps[0].clone().fill_(torch.nan)])
    assert both.units().deviations.isfinite().all()
    both.add(maps)
    torch.testing.assert_close(both.units().deviations, alone.units().deviations)


def test_a_level_that_does_not_vary_has_deviation_one() -> None:
    units = TeacherUnits()
    units.add([torch.full((2, 3, 4, 4), 7.0)])
    assert units.units().deviations.tolist() == [1.0]


def test_a_level_that_varies_by_nothing_that_float32_can_square_has_deviation_one() -> None:
    units = TeacherUnits()
    units.add([torch.randn(2, 3, 4, 4) * 1e-19, torch.randn(2, 3, 4, 4) * 1e-9])
    first, second = units.units().deviations.tolist()
    assert first == 1.0
    assert 1e-10 < second < 1e-8


def test_units_go_on_from_a_state() -> None:
    _, student, distiller = make_pair()
    train_step(student, distiller)
    other = make_pair()[2]
    other.load_state_dict(distiller.state_dict())
    for item in (distiller, other):
        item._units.add([torch.randn(2, 24, s, s, generator=torch.Generator().manual_seed(3)) for s in (32, 16, 8)])
    assert torch.equal(distiller._units.units().deviations, other._units.units().deviations)


def test_evaluation_before_the_first_step_has_units() -> None:
    _, student, distiller = make_pair()
    distiller.eval()
    images, (boxes, labels) = make_images(), make_boxes()
    own_loss(student(images))
    assert all(value.isfinite() for value in distiller(images, boxes, labels).values())
    assert isinstance(distiller, Distiller)
