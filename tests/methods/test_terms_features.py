"""Methods that compare whole maps, against plain Python arithmetic on small integers."""

from __future__ import annotations

import math

import pytest
import torch
from term_cases import Rows, identity, make_map, make_setup, make_step
from torch import nn

from gkd_fast.methods import Settings
from gkd_fast.methods.cwd import CWD
from gkd_fast.methods.fbkd import FBKD, NonLocal
from gkd_fast.methods.mgd import MGD
from gkd_fast.methods.pkd import PKD

STUDENT: list[Rows] = [[[0, 1], [2, 3]], [[1, 1], [0, 2]]]
TEACHER: list[Rows] = [[[3, 0], [0, 1]], [[2, -1], [1, 0]]]


def cells(channel: Rows) -> list[float]:
    return [value for row in channel for value in row]


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_cwd_is_the_divergence_of_every_channel() -> None:
    term = CWD(make_setup(2), Settings(cwd_weight=3.0, cwd_temperature=2.0))
    divergence = 0.0
    for own, other in zip(STUDENT, TEACHER, strict=True):
        for p, q in zip(softmax(cells(other), 2), softmax(cells(own), 2), strict=True):
            divergence += p * math.log(p / q)
    found = term(make_step(make_map(*STUDENT), make_map(*TEACHER)))
    assert found["channels"].item() == pytest.approx(3 * 2**2 * divergence / 2, rel=1e-5)


def test_cwd_sums_levels_and_takes_the_mean_over_images() -> None:
    term = CWD(make_setup(2, levels=2), Settings())
    single = CWD(make_setup(2), Settings())(make_step(make_map(*STUDENT), make_map(*TEACHER)))["channels"]
    student, teacher = (make_map(*maps).repeat(3, 1, 1, 1) for maps in (STUDENT, TEACHER))
    found = term(make_step([student, student], [teacher, teacher]))["channels"]
    torch.testing.assert_close(found, 2 * single)


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return covariance / spread


@pytest.mark.parametrize(("stage", "weight"), [("two_stage", 6.0), ("one_stage", 10.0)])
def test_pkd_is_one_minus_the_correlation(stage: str, weight: float) -> None:
    term = PKD(make_setup(2, stage=stage), Settings())
    # 1/2 mean (a - b)^2 of standardised a and b with n - 1 in the deviation is (n - 1) / n (1 - r).
    expected = sum(3 / 4 * (1 - pearson(cells(s), cells(t))) for s, t in zip(STUDENT, TEACHER, strict=True)) / 2
    found = term(make_step(make_map(*STUDENT), make_map(*TEACHER)))
    assert found["correlation"].item() == pytest.approx(weight * expected, rel=1e-5)


def test_pkd_does_not_see_scale_and_offset() -> None:
    term = PKD(make_setup(2), Settings())
    found = term(make_step(make_map(*STUDENT), 5 * make_map(*STUDENT) - 7))["correlation"]
    assert found.item() == pytest.approx(0, abs=1e-9)


def test_pkd_survives_maps_of_one_cell() -> None:
    student = torch.ones(1, 2, 1, 1, requires_grad=True)
    PKD(make_setup(2), Settings())(make_step(student, torch.zeros(1, 2, 1, 1)))["correlation"].backward()
    assert torch.isfinite(student.grad).all()


def generate_twice_plus_one(term: MGD) -> None:
    """G(x) = 2 max(x, 0) + 1."""
    identity([layer for generator in term.generators for layer in generator if isinstance(layer, nn.Conv2d)])
    for generator in term.generators:
        nn.init.constant_(generator[2].bias, 1)
        with torch.no_grad():
            generator[2].weight.mul_(2)


@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_mgd_generates_the_teacher_from_what_is_kept(masked: float) -> None:
    config = Settings(mgd_weight=(0.5, 3.0), mgd_masked=(0.5, masked))
    term = MGD(make_setup(2), config)
    generate_twice_plus_one(term)
    expected = 0.0
    for own, other in zip(STUDENT, TEACHER, strict=True):
        for s, t in zip(cells(own), cells(other), strict=True):
            expected += (t - (2 * (0 if masked else s) + 1)) ** 2
    student, teacher = (make_map(*maps).repeat(2, 1, 1, 1) for maps in (STUDENT, TEACHER))
    assert term(make_step(student, teacher))["generation"].item() == pytest.approx(3 * expected)


def test_mgd_masks_whole_cells_of_the_given_fraction() -> None:
    term = MGD(make_setup(2), Settings(mgd_weight=(1.0, 1.0), mgd_masked=(0.0, 0.65)))
    identity([layer for layer in term.generators[0] if isinstance(layer, nn.Conv2d)])
    torch.manual_seed(0)
    count = term(make_step(torch.ones(1, 2, 100, 100), torch.zeros(1, 2, 100, 100)))["generation"].item()
    assert count % 2 == 0  # both channels of a cell
    assert count / 20_000 == pytest.approx(0.35, abs=0.02)


def two_stage_fbkd(**weights: float) -> FBKD:
    pairs = {f"fbkd_{name}": (value, 99.0) for name, value in weights.items()}
    term = FBKD(make_setup(2, stage="two_stage", levels=2), Settings(**pairs))
    identity(term.adapters)
    identity(term.relation_adapters)
    return term


def test_fbkd_compares_attention_and_features_under_it() -> None:
    term = two_stage_fbkd(temperature=0.5, attention_weight=2.0, masked_weight=3.0, relation_weight=5.0)
    own, other = ([cells(channel) for channel in maps] for maps in (STUDENT, TEACHER))
    spatial = [[(abs(a) + abs(b)) / 2 for a, b in zip(*maps, strict=True)] for maps in (own, other)]
    channel = [[sum(map(abs, values)) / 4 for values in maps] for maps in (own, other)]
    attention = math.dist(*spatial) + math.dist(*channel)
    mask_s = [4 * value for value in softmax([a + b for a, b in zip(*spatial, strict=True)], 0.5)]
    mask_c = [2 * value for value in softmax([a + b for a, b in zip(*channel, strict=True)], 0.5)]
    squares = [[(s - t) ** 2 for s, t in zip(*pair, strict=True)] for pair in zip(own, other, strict=True)]
    masked = math.sqrt(sum(mask_c[c] * mask_s[i] * squares[c][i] for c in range(2) for i in range(4)))
    relation = math.sqrt(sum(map(sum, squares)))  # the non-local blocks start as the identity

    # The last level of a two-stage pyramid repeats the one before and takes no part.
    maps = [make_map(*STUDENT), make_map(*STUDENT)], [make_map(*TEACHER), make_map(*TEACHER)]
    found = {name: value.item() for name, value in term(make_step(*maps)).items()}
    assert found == pytest.approx({"attention": 2 * attention, "masked": 3 * masked, "relation": 5 * relation}, 1e-5)


def test_the_non_local_block_relates_all_pairs_of_cells() -> None:
    block = NonLocal(4)  # two inner channels
    weights = {
        "theta": [[1.0, 2, 0, 0], [0, 0, 1, -1]],
        "phi": [[-1.0, 0, 1, 0], [0, 1, 0, 3]],
        "value": [[3.0, 0, 0, 1], [0, 2, 1, 0]],
        "out": [[2.0, 0], [0, -1], [1, 1], [0, 0]],
    }
    for name, rows in weights.items():
        layer = getattr(block, name)
        layer.weight.data = torch.tensor(rows)[:, :, None, None]
        nn.init.zeros_(layer.bias)
    points = [list(point) for point in zip(*(cells(channel) for channel in STUDENT + TEACHER), strict=True)]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    def project(name: str, point: list[float]) -> list[float]:
        return [dot(row, point) for row in weights[name]]

    found = block(make_map(*STUDENT, *TEACHER))[0].detach().flatten(1)
    for i, point in enumerate(points):
        shares = [dot(project("theta", point), project("phi", other)) / 4 for other in points]
        values = [project("value", other) for other in points]
        related = [dot(shares, [value[c] for value in values]) for c in range(2)]
        expected = [x + added for x, added in zip(point, project("out", related), strict=True)]
        assert found[:, i].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("method", [CWD, PKD, MGD, FBKD])
def test_equal_maps_have_finite_gradients(method) -> None:
    student = make_map(*STUDENT).requires_grad_()
    term = method(make_setup(2), Settings())
    if isinstance(term, FBKD):
        identity(term.adapters)
        identity(term.relation_adapters)
    sum(term(make_step(student, student.detach().clone())).values()).backward()
    assert torch.isfinite(student.grad).all()
