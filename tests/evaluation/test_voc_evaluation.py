import numpy as np
import pytest
import torch
from evaluation_cases import detection, truth

from gkd_fast.evaluation import evaluate_voc

SPOTS = [(40 * k, 0, 40 * k + 20, 20) for k in range(5)]
NOWHERE = (0, 100, 20, 120)


def cats(count: int, **options) -> dict:
    return truth(*[(0, 1, (x1, y1, 20, 20)) for x1, y1, _, _ in SPOTS[:count]], classes=("cat",), **options)


def ranked(*boxes: tuple) -> list[dict]:
    """Detections of cats in image 0, best first."""
    return [detection(0, *[(1, 0.9 - 0.1 * k, box) for k, box in enumerate(boxes)])]


def test_figures_computed_by_hand():
    # True, false, true, false, true of four cats: precision 1, 2/3, 3/5 at recall 1/4, 2/4, 3/4.
    detections = ranked(SPOTS[0], NOWHERE, SPOTS[1], NOWHERE, SPOTS[2])
    area = evaluate_voc(cats(4), detections)
    assert area["mAP"] == area["per_class"]["cat"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    # Recall 0, .1, .2 lie within 1/4; .3, .4, .5 within 2/4; .6, .7 within 3/4; .8, .9, 1 are never reached.
    points = evaluate_voc(cats(4), detections, rule="2007")
    assert points["mAP"] == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)


def test_later_and_better_precision_counts_for_lower_recall():
    # False, true, true: precision 0, 1/2, 2/3; at recall 1/2 the best precision from there on is 2/3.
    detections = ranked(NOWHERE, SPOTS[0], SPOTS[1])
    assert evaluate_voc(cats(2), detections)["mAP"] == pytest.approx(2 / 3)
    assert evaluate_voc(cats(2), detections, rule="2007")["mAP"] == pytest.approx(2 / 3)


def test_recall_of_three_tenths_reaches_the_third_point():
    ground_truth = truth(*[(0, 1, (18 * k, 0, 10, 10)) for k in range(10)], classes=("cat",))
    detections = ranked(*[(18 * k, 0, 18 * k + 10, 10) for k in range(3)])
    assert evaluate_voc(ground_truth, detections, rule="2007")["mAP"] == pytest.approx(4 / 11)


def test_second_detection_of_an_object_is_false():
    assert evaluate_voc(cats(2), ranked(SPOTS[0], SPOTS[0], SPOTS[1]))["mAP"] == pytest.approx((1 + 2 / 3) / 2)


def test_taken_object_is_not_exchanged_for_the_next_best():
    # The second detection overlaps the first cat most, although the other would be free and reach the threshold.
    ground_truth = truth((0, 1, (0, 0, 20, 20)), (0, 1, (4, 0, 20, 20)), classes=("cat",))
    detections = ranked((0, 0, 20, 20), (1, 0, 21, 20))
    assert evaluate_voc(ground_truth, detections)["mAP"] == pytest.approx(1 / 2)


def test_difficult_objects_are_neither_required_nor_held_against():
    ground_truth = cats(3)
    ground_truth["annotations"][1]["iscrowd"] = 1
    # Both detections of the difficult cat are left out.
    detections = ranked(SPOTS[1], SPOTS[0], SPOTS[1], SPOTS[2])
    assert evaluate_voc(ground_truth, detections)["mAP"] == pytest.approx(1.0)
    assert evaluate_voc(ground_truth, ranked(SPOTS[1], NOWHERE, SPOTS[0]))["mAP"] == pytest.approx(1 / 2 * 1 / 2)


@pytest.mark.parametrize(("width", "expected"), [(10, 1.0), (9.99, 0.0)])
def test_overlap_of_exactly_the_threshold_is_enough(width: float, expected: float):
    assert evaluate_voc(cats(1), ranked((0, 0, width, 20)))["mAP"] == pytest.approx(expected)
    assert evaluate_voc(cats(1), ranked((0, 0, width, 20)), iou_threshold=0.7)["mAP"] == 0


def test_images_and_classes_are_kept_apart():
    ground_truth = truth((0, 1, (0, 0, 20, 20)), (1, 2, (0, 0, 20, 20)), classes=("cat", "dog", "eel"))
    box = (0, 0, 20, 20)
    result = evaluate_voc(ground_truth, [detection(0, (1, 0.5, box), (2, 0.9, box)), detection(1, (2, 0.8, box))])
    assert result["per_class"] == pytest.approx({"cat": 1.0, "dog": 0.5, "eel": -1.0})
    assert result["mAP"] == pytest.approx(0.75)


@pytest.mark.parametrize("rule", ["2007", "2010"])
def test_nothing_detected(rule: str):
    assert evaluate_voc(cats(2), [], rule=rule) == {"mAP": 0.0, "per_class": {"cat": 0.0}}
    assert evaluate_voc(cats(0), [], rule=rule) == {"mAP": -1.0, "per_class": {"cat": -1.0}}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"rule": "2012"}, "got '2012'"), ({"iou_threshold": 0.0}, "got 0.0"), ({"iou_threshold": 1.5}, "got 1.5")],
)
def test_options_out_of_range(options: dict, expected: str):
    with pytest.raises(ValueError, match=expected):
        evaluate_voc(cats(1), [], **options)


def test_published_example():
    # Padilla, Netto, da Silva: A Survey on Performance Metrics for Object-Detection Algorithms, 2020, its worked
    # example: 15 objects and 24 detections, of which these ranks are true; 24.56 % (all points), 26.84 % (11 points).
    scores = (95, 95, 91, 88, 84, 80, 78, 74, 71, 70, 67, 62, 54, 48, 45, 45, 44, 44, 43, 38, 35, 23, 18, 14)
    true_ranks = (1, 3, 10, 12, 13, 14, 23)
    spots = [(12 * k, 0, 12 * k + 10, 10) for k in range(15)]
    ground_truth = truth(*[(0, 1, (x1, y1, 10, 10)) for x1, y1, _, _ in spots], classes=("cat",))
    boxes = [spots[true_ranks.index(k)] if k in true_ranks else NOWHERE for k in range(1, 25)]
    found = [detection(0, *[(1, score / 100, box) for score, box in zip(scores, boxes, strict=True)])]
    assert evaluate_voc(ground_truth, found)["mAP"] == pytest.approx(0.2456, abs=1e-4)
    assert evaluate_voc(ground_truth, found, rule="2007")["mAP"] == pytest.approx(0.2684, abs=1e-4)


def slow_average_precision(boxes, difficult, detections, rule):
    """One class, one detection after the other, as the rules are told."""
    taken, hits = set(), []
    for _, image, box in sorted(detections, key=lambda row: -row[0]):
        best, match = -1.0, None
        for k, (at, (x1, y1, x2, y2)) in enumerate(boxes):
            if at == image:
                w, h = min(x2, box[2]) - max(x1, box[0]), min(y2, box[3]) - max(y1, box[1])
                shared = max(w, 0) * max(h, 0)
                union = (x2 - x1) * (y2 - y1) + (box[2] - box[0]) * (box[3] - box[1]) - shared
                if shared / union > best:
                    best, match = shared / union, k
        if best < 0.5:
            hits.append(False)
        elif not difficult[match]:
            hits.append(match not in taken)
            taken.add(match)
    positives, curve = sum(not d for d in difficult), []
    for n in range(1, len(hits) + 1):
        curve.append((sum(hits[:n]) / positives, sum(hits[:n]) / n))
    if rule == "2007":
        best = [max((p for r, p in curve if r >= t / 10 - 1e-9), default=0.0) for t in range(11)]
        return sum(best) / 11
    steps = [(r, max(p for _, p in curve[k:])) for k, (r, _) in enumerate(curve)]
    return sum((r - r0) * p for (r, p), r0 in zip(steps, [0.0] + [r for r, _ in steps], strict=False))


@pytest.mark.parametrize("rule", ["2007", "2010"])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_slow_count(seed: int, rule: str):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (30, 2))
    boxes = [
        (int(rng.integers(4)), (x, y, x + 20 + w, y + 20 + h))
        for (x, y), (w, h) in zip(corners, rng.integers(0, 20, (30, 2)), strict=True)
    ]
    difficult = [bool(d) for d in rng.random(30) < 0.2]
    found = []
    for image, box in boxes * 2:
        moved = np.array(box) + rng.integers(-5, 6, 4)
        found.append((float(np.float32(rng.random())), image, tuple(moved.tolist())))
    ground_truth = truth(
        *[(at, 1, (b[0], b[1], b[2] - b[0], b[3] - b[1]), int(d)) for (at, b), d in zip(boxes, difficult, strict=True)],
        images=4,
        classes=("cat",),
    )
    detections = [detection(k, *[(1, s, box) for s, at, box in found if at == k]) for k in range(4)]
    expected = slow_average_precision(boxes, difficult, found, rule)
    assert 0.1 < expected < 0.95
    assert evaluate_voc(ground_truth, detections, rule=rule)["mAP"] == pytest.approx(expected)


def test_pixels_counted_from_one_inclusive_overlap_as_in_the_development_kit():
    # xmin..xmax 1..10 and 1..5, one row: 5 of 10 pixels. As continuous boxes: [0, 10] and [0, 5].
    ground_truth = truth((0, 1, (0, 0, 10, 1)), classes=("cat",))
    assert evaluate_voc(ground_truth, ranked((0, 0, 5, 1)))["mAP"] == pytest.approx(1.0)
    assert evaluate_voc(ground_truth, ranked((0, 0, 4, 1)))["mAP"] == 0.0


def test_float64_boxes_and_missing_iscrowd():
    ground_truth = cats(1)
    del ground_truth["annotations"][0]["iscrowd"]
    found = ranked(SPOTS[0])
    found[0]["boxes"] = found[0]["boxes"].to(torch.float64)
    assert evaluate_voc(ground_truth, found)["mAP"] == pytest.approx(1.0)
