"""Relations between instances, against plain Python arithmetic on points with integer coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from term_cases import make_setup, make_step
from torch import Tensor

from gkd_fast.methods import Settings
from gkd_fast.methods.rkd import RKD

CONFIG = Settings(rkd_distance_weight=2.0, rkd_angle_weight=3.0)
STUDENT = [(0, 0), (3, 4), (0, 4)]
TEACHER = [(1, 0, 0), (1, 1, 0), (4, 0, 0)]
Points = list[tuple[float, ...]]


def row_of_points(points: Points) -> Tensor:
    """A map of one row with a point in every cell."""
    return torch.tensor(points, dtype=torch.float32).T[None, :, None, :].contiguous()


def boxes_in_cells(count: int) -> list[list[float]]:
    return [[8 * x + 1, 1, 8 * x + 7, 7] for x in range(count)]


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def distances(points: Points) -> list[float]:
    all_pairs = [math.dist(a, b) for a in points for b in points]
    mean = sum(all_pairs) / sum(value > 0 for value in all_pairs)
    return [value / mean for value in all_pairs]


def cosines(points: Points) -> list[float]:
    found = []
    for a in points:
        for b in points:
            for c in points:
                lengths = math.dist(a, b) * math.dist(a, c)
                inner = sum((y - x) * (z - x) for x, y, z in zip(a, b, c, strict=True))
                found.append(inner / lengths if lengths else 0.0)
    return found


def mean_huber(student: list[float], teacher: list[float]) -> float:
    return sum(huber(s - t) for s, t in zip(student, teacher, strict=True)) / len(student)


def test_rkd_compares_distances_and_angles() -> None:
    expected = {
        "distance": 2 * mean_huber(distances(STUDENT), distances(TEACHER)),
        "angle": 3 * mean_huber(cosines(STUDENT), cosines(TEACHER)),
    }
    step = make_step(row_of_points(STUDENT), row_of_points(TEACHER), boxes_in_cells(3))
    found = RKD(make_setup(), CONFIG)(step)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)


def test_rkd_does_not_see_scale_rotation_and_offset() -> None:
    turned = [(7 - 2 * y, 2 * x + 1) for x, y in STUDENT]
    found = RKD(make_setup(), CONFIG)(make_step(row_of_points(STUDENT), row_of_points(turned), boxes_in_cells(3)))
    assert sum(found.values()).item() == pytest.approx(0, abs=1e-6)


def test_rkd_takes_the_mean_over_levels() -> None:
    maps = row_of_points(STUDENT), row_of_points(TEACHER)
    one = RKD(make_setup(), CONFIG)(make_step(*maps, boxes_in_cells(3)))
    # On the second level, of twice the stride, all three boxes lie in cells 0 and 1.
    points = [STUDENT[0], STUDENT[0], STUDENT[1]], [TEACHER[0], TEACHER[0], TEACHER[1]]
    step = make_step([maps[0]] * 2, [maps[1]] * 2, boxes_in_cells(3))
    expected = (one["distance"].item() + 2 * mean_huber(distances(points[0]), distances(points[1]))) / 2
    assert RKD(make_setup(levels=2), CONFIG)(step)["distance"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_and_coinciding_instances_have_finite_gradients(count: int) -> None:
    student = row_of_points([(1, 1), (1, 1), (2, 5)]).requires_grad_()
    sum(
        RKD(make_setup(), CONFIG)(make_step(student, row_of_points(TEACHER), boxes_in_cells(count))).values()
    ).backward()
    assert torch.isfinite(student.grad).all()
    assert bool((student.grad != 0).any()) == (count == 3)


def test_rkd_spreads_its_instances_over_the_batch() -> None:
    points = [(x * x, x) for x in range(8)]
    limited = Settings(rkd_distance_weight=2.0, rkd_instances=4)
    step = make_step(row_of_points(points), row_of_points([(y, x) for x, y in points]), boxes_in_cells(8))
    scaled = make_step(row_of_points(points), row_of_points([(3 * x, y) for x, y in points]), boxes_in_cells(8))
    assert RKD(make_setup(), limited)(step)["distance"].item() == pytest.approx(0, abs=1e-6)
    chosen = points[::2]
    expected = 2 * mean_huber(distances(chosen), distances([(3 * x, y) for x, y in chosen]))
    assert RKD(make_setup(), limited)(scaled)["distance"].item() == pytest.approx(expected, rel=1e-4)
