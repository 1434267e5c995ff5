"""Methods that look at boxes, against plain Python arithmetic on small integers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from term_cases import Rows, anchors_of, identity, iou, make_map, make_setup, make_step
from torch import Tensor, nn

from gkd_fast.methods import Settings
from gkd_fast.methods.defeat import DeFeat, decoupled_divergence
from gkd_fast.methods.fgd import FGD, GlobalContext
from gkd_fast.methods.fgfi import FGFI

SIDE = 4  # cells of 8 pixels
STUDENT: list[Rows] = [[[(3 * y + x + c) % 5 for x in range(SIDE)] for y in range(SIDE)] for c in range(2)]
TEACHER: list[Rows] = [[[(y + 2 * x + 3 * c) % 4 for x in range(SIDE)] for y in range(SIDE)] for c in range(2)]
CELL_ANCHORS: Rows = [[8 * x, 8 * y, 8 * x + 8, 8 * y + 8] for y in range(SIDE) for x in range(SIDE)]
EVERY_CELL = [(y, x) for y in range(SIDE) for x in range(SIDE)]


def square(y: int, x: int) -> float:
    return sum((STUDENT[c][y][x] - TEACHER[c][y][x]) ** 2 for c in range(2))


def make_fgfi(threshold: float) -> FGFI:
    term = FGFI(make_setup(2), Settings(fgfi_weight=0.5, fgfi_threshold=threshold))
    identity(term.adapters)
    return term


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_fgfi_imitates_near_the_boxes(threshold: float) -> None:
    boxes, weights = [[0, 0, 8, 8], [12, 0, 24, 8], [20, 17, 31, 32]], [1.0, 0.5, 0.25]
    mask = dict.fromkeys(EVERY_CELL, 0.0)
    for box, weight in zip(boxes, weights, strict=True):
        overlap = [iou(box, anchor) for anchor in CELL_ANCHORS]
        for cell, value in zip(EVERY_CELL, overlap, strict=True):
            if value > threshold * max(overlap):
                mask[cell] = max(mask[cell], weight)
    expected = 0.5 * sum(mask[cell] * square(*cell) for cell in EVERY_CELL) / (2 * sum(mask.values()))
    anchors = anchors_of(CELL_ANCHORS)
    step = make_step(make_map(*STUDENT), make_map(*TEACHER), boxes, weights=weights, anchors=anchors)
    assert make_fgfi(threshold)(step)["imitation"].item() == pytest.approx(expected)


def test_fgfi_gives_a_box_to_the_level_of_its_size_and_to_its_image() -> None:
    term = FGFI(make_setup(1, levels=2), Settings(fgfi_weight=1.0))
    identity(term.adapters)
    # 112 pixels and more belong to the second level. The student is 1 in the first image, 2 in the second.
    boxes: Rows = [[0, 0, 64, 64], [0, 0, 128, 128]]
    anchors = anchors_of([[0, 0, 64, 64], [64, 0, 128, 64]], [[0, 0, 128, 128]])
    student = [torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).repeat(1, 1, 1, 2), 10 * torch.ones(2, 1, 1, 1)]
    step = make_step(
        student,
        [torch.zeros_like(level) for level in student],
        boxes,
        image_index=[1, 0],
        anchors=anchors,
    )
    assert term(step)["imitation"].item() == pytest.approx((2**2 + 10**2) / (2 * 2))


def make_defeat(stage: str = "one_stage") -> DeFeat:
    config = Settings(defeat_foreground_weight=3.0, defeat_background_weight=5.0)
    term = DeFeat(make_setup(2, stage=stage), config)
    identity(term.adapters)
    return term


@pytest.mark.parametrize("trust", [(1.0, 1.0), (0.5, 0.25)])
def test_defeat_decouples_objects_and_background(trust: tuple[float, float]) -> None:
    mask = {(y, x): trust[1] for y in (0, 1, 2, 3) for x in (0, 1)}
    mask |= {(y, x): trust[0] for y in (1, 2) for x in (1, 2, 3)}
    foreground = sum(weight * square(*cell) for cell, weight in mask.items()) / (2 * 2 * sum(mask.values()))
    outside = [cell for cell in EVERY_CELL if cell not in mask]
    background = sum(square(*cell) for cell in outside) / (2 * 2 * len(outside))
    maps = make_map(*STUDENT), make_map(*TEACHER)
    step = make_step(*maps, [[8, 8, 32, 24], [0, 0, 16, 32]], weights=trust)
    found = {name: value.item() for name, value in make_defeat()(step).items()}
    assert found == pytest.approx({"foreground": 3 * foreground, "background": 5 * background})


def test_defeat_takes_the_mean_over_levels() -> None:
    term = DeFeat(make_setup(2, levels=2), Settings(defeat_background_weight=5.0))
    identity(term.adapters)
    maps = [make_map(*STUDENT), make_map(*STUDENT)], [make_map(*TEACHER), make_map(*TEACHER)]
    expected = 5 * sum(square(*cell) for cell in EVERY_CELL) / (2 * 2 * 16)
    assert term(make_step(*maps))["background"].item() == pytest.approx(expected)


def test_defeat_decouples_positive_and_negative_proposals() -> None:
    student, teacher = [[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 3.0], [0.0, 2.0]]
    is_object = [True, False, True]

    def log_softmax(row: list[float]) -> list[float]:
        total = math.log(sum(map(math.exp, row)))
        return [value - total for value in row]

    def divergence(index: int) -> float:
        own, other = log_softmax(student[index]), log_softmax(teacher[index])
        return sum(math.exp(t) * (t - s) for s, t in zip(own, other, strict=True))

    arguments = torch.tensor(student), torch.tensor(teacher), torch.tensor([0 if own else -1 for own in is_object])
    positive, negative = decoupled_divergence(*arguments)
    assert positive.item() == pytest.approx((divergence(0) + divergence(2)) / 2, rel=1e-5)
    assert negative.item() == pytest.approx(divergence(1), rel=1e-5)

    assert decoupled_divergence(*(torch.cat([a, a[:1] * 0 - 2]) for a in arguments)) == (positive, negative)

    soft = {
        "logits": arguments[0],
        "samples": SimpleNamespace(boxes="boxes", matched=arguments[2]),
        "size": "size",
    }
    asked = []

    def classify(*question) -> tuple[Tensor, None]:
        asked.append(question)
        return arguments[1], None

    step = make_step(
        make_map(*STUDENT),
        make_map(*TEACHER),
        detection=SimpleNamespace(
            own=SimpleNamespace(soft=soft),
            teacher=SimpleNamespace(classify=classify),
            teacher_pyramid=lambda maps: {"0": maps[0]},
        ),
    )
    terms = make_defeat("two_stage")(step)
    assert terms["positive"].item() == pytest.approx(2 * positive.item())
    assert terms["negative"].item() == pytest.approx(2 * negative.item())
    assert asked == [({"0": step.teacher[0]}, "boxes", "size")]


def spatial_attention(maps: list[Rows], temperature: float) -> dict[tuple[int, int], float]:
    powers = {(y, x): math.exp((abs(maps[0][y][x]) + abs(maps[1][y][x])) / 2 / temperature) for y, x in EVERY_CELL}
    return {cell: 16 * power / sum(powers.values()) for cell, power in powers.items()}


def channel_attention(maps: list[Rows], temperature: float) -> list[float]:
    powers = [math.exp(sum(abs(channel[y][x]) for y, x in EVERY_CELL) / 16 / temperature) for channel in maps]
    return [2 * power / sum(powers) for power in powers]


def test_fgd_focuses_on_boxes_and_attention() -> None:
    weights = {"foreground": 2.0, "background": 3.0, "attention": 5.0, "global": 7.0}
    config = Settings(**{f"fgd_{name}_weight": (99.0, value) for name, value in weights.items()})
    term = FGD(make_setup(2), config)
    # Rows floor(9/8) to ceil(15/8) and columns floor(8/8) to ceil(24/8); the second box is smaller and counts half.
    boxes: Rows = [[8, 9, 24, 15], [25, 2, 31, 10]]
    covered = [{(y, x) for y in (1, 2) for x in (1, 2, 3)}, {(y, x) for y in (0, 1, 2) for x in (3,)}]
    area, trust = [2 * 3, 3 * 2], [1.0, 0.5]  # the second reaches column 4, outside of the map
    mask = {cell: max([trust[r] / area[r] for r in range(2) if cell in covered[r]], default=0.0) for cell in EVERY_CELL}
    outside = [cell for cell in EVERY_CELL if cell not in covered[0] | covered[1]]

    cells_s, cells_t = spatial_attention(STUDENT, 0.5), spatial_attention(TEACHER, 0.5)
    depth_s, depth_t = channel_attention(STUDENT, 0.5), channel_attention(TEACHER, 0.5)

    def attended(y: int, x: int) -> float:
        return cells_t[y, x] * sum(depth_t[c] * (STUDENT[c][y][x] - TEACHER[c][y][x]) ** 2 for c in range(2))

    expected = {
        "foreground": 2 * sum(mask[cell] * attended(*cell) for cell in EVERY_CELL),
        "background": 3 * sum(attended(*cell) for cell in outside) / len(outside),
        "attention": 5
        * (
            sum(abs(cells_s[cell] - cells_t[cell]) for cell in EVERY_CELL)
            + sum(abs(s - t) for s, t in zip(depth_s, depth_t, strict=True))
        ),
        "global": 7 * sum(square(*cell) for cell in EVERY_CELL),  # GcBlocks start as the identity
    }
    step = make_step(make_map(*STUDENT), make_map(*TEACHER), boxes, weights=trust)
    assert {name: value.item() for name, value in term(step).items()} == pytest.approx(expected, rel=1e-4)


def test_fgd_takes_the_mean_over_images_and_sums_levels() -> None:
    student, teacher = make_map(*STUDENT), make_map(*TEACHER)
    single = FGD(make_setup(2), Settings())(make_step(student, teacher, [[0, 0, 7, 7]]))
    maps = [[feature.repeat(2, 1, 1, 1)] * 2 for feature in (student, teacher)]
    boxes: Rows = [[0, 0, 7, 7], [0, 0, 7, 7]]
    found = FGD(make_setup(2, levels=2), Settings())(make_step(*maps, boxes, image_index=[0, 1]))
    for name, value in single.items():
        torch.testing.assert_close(found[name], 2 * value)


def test_fgd_without_boxes_has_background_alone_and_none_where_boxes_cover_all() -> None:
    term = FGD(make_setup(2), Settings())
    maps = make_map(*STUDENT), make_map(*TEACHER)
    empty, full = term(make_step(*maps)), term(make_step(*maps, [[0, 0, 32, 32]]))
    assert empty["foreground"].item() == full["background"].item() == 0
    assert empty["background"].item() > 0
    assert full["foreground"].item() > 0


def test_the_global_context_is_added_to_every_cell() -> None:
    block = GlobalContext(4)
    key, reduce, expand = [1.0, 0, -1, 0], [[1.0, 2, 0, 0], [0, 0, 1, -1]], [[1.0, 0], [0, 2], [3, 0], [0, -1]]
    block.key.weight.data = torch.tensor(key).view(1, 4, 1, 1)
    block.reduce.weight.data, block.expand.weight.data = torch.tensor(reduce), torch.tensor(expand)
    nn.init.zeros_(block.reduce.bias)
    points = [[1.0, 0, 2, 3], [0, 1, 1, 0]]
    powers = [math.exp(sum(k * x for k, x in zip(key, point, strict=True))) for point in points]
    context = [sum(p * point[c] for p, point in zip(powers, points, strict=True)) / sum(powers) for c in range(4)]
    hidden = [sum(w * x for w, x in zip(row, context, strict=True)) for row in reduce]
    mean = sum(hidden) / 2
    deviation = math.sqrt(sum((h - mean) ** 2 for h in hidden) / 2 + 1e-5)
    active = [max(0.0, (h - mean) / deviation) for h in hidden]
    added = [sum(w * a for w, a in zip(row, active, strict=True)) for row in expand]
    found = block(torch.tensor(points).T.reshape(1, 4, 1, 2))[0].detach().flatten(1).T
    for row, point in zip(found.tolist(), points, strict=True):
        assert row == pytest.approx([x + a for x, a in zip(point, added, strict=True)], abs=1e-5)


@pytest.mark.parametrize("make", [lambda: make_fgfi(0.5), make_defeat, lambda: FGD(make_setup(2), Settings())])
def test_gradients_reach_the_student_with_and_without_boxes(make) -> None:
    for boxes in ([[8, 8, 24, 24]], None):
        student = make_map(*STUDENT).requires_grad_()
        anchors = anchors_of(CELL_ANCHORS)
        sum(make()(make_step(student, make_map(*TEACHER), boxes, anchors=anchors)).values()).backward()
        assert torch.isfinite(student.grad).all()
        if boxes:
            assert (student.grad != 0).any()
