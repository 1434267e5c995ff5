import copy
import gc
import json

import pytest
import torch
from evaluation_cases import detection, truth

from gkd_fast.evaluation import evaluate_coco

EMPTY = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")


# Recall is read at 0, 0.01, ..., 1: half recall covers the first 51 of 101 points.
HALF = 51 / 101


def test_perfect_detections():
    ground_truth = truth((0, 1, (10, 10, 20, 20)), (0, 2, (50, 50, 60, 60)), (1, 1, (0, 0, 120, 150)))
    result = evaluate_coco(
        ground_truth,
        [
            detection(0, (1, 0.9, (10, 10, 30, 30)), (2, 0.8, (50, 50, 110, 110))),
            detection(1, (1, 0.7, (0, 0, 120, 150))),
        ],
    )
    assert {name: result[name] for name in FIGURES} == pytest.approx(dict.fromkeys(FIGURES, 1.0))
    assert result["per_class"] == pytest.approx({"cat": 1.0, "dog": 1.0})


def test_figures_computed_by_hand():
    # Two cats of 100 x 100. The best detection is exact, the second is nowhere, the third overlaps by 62 %.
    ground_truth = truth((0, 1, (0, 0, 100, 100)), (1, 1, (0, 0, 100, 100)), classes=("cat",))
    result = evaluate_coco(
        ground_truth,
        [
            detection(0, (1, 0.9, (0, 0, 100, 100)), (1, 0.8, (150, 150, 199, 199))),
            detection(1, (1, 0.7, (0, 0, 62, 100))),
        ],
    )
    loose = HALF + (1 - HALF) * 2 / 3
    assert result["AP50"] == pytest.approx(loose)
    assert result["AP75"] == pytest.approx(HALF)
    # Overlaps of 0.50, 0.55 and 0.60 are reached, seven more are not.
    assert result["AP"] == result["per_class"]["cat"] == pytest.approx(0.3 * loose + 0.7 * HALF)
    assert result["AR100"] == result["AR1"] == pytest.approx(0.3 * 1 + 0.7 * 0.5)


def test_detections_in_a_crowd_cost_nothing():
    crowd = truth((0, 1, (0, 0, 20, 20)), (0, 1, (100, 100, 100, 100), 1))
    rows = ((1, 0.9, (110, 110, 130, 130)), (1, 0.8, (150, 150, 170, 170)), (1, 0.7, (0, 0, 20, 20)))
    assert evaluate_coco(crowd, [detection(0, *rows)])["AP"] == pytest.approx(1.0)
    crowd["annotations"].pop()
    assert evaluate_coco(crowd, [detection(0, *rows)])["AP"] == pytest.approx(1 / 3)


def test_sizes():
    ground_truth = truth((0, 1, (0, 0, 20, 20)), (0, 1, (40, 40, 60, 60)), (1, 1, (0, 0, 100, 100)))
    result = evaluate_coco(ground_truth, [detection(0, (1, 0.9, (40, 40, 100, 100)))])
    assert [result[name] for name in ("APs", "APm", "APl")] == pytest.approx([0.0, 1.0, 0.0])


def test_no_ground_truth_of_a_kind_is_minus_one():
    result = evaluate_coco(truth((0, 1, (0, 0, 20, 20))), [detection(0, (1, 0.9, (0, 0, 20, 20)))])
    assert [result[name] for name in ("AP", "APs", "APm", "APl")] == pytest.approx([1, 1, -1, -1])
    assert result["per_class"] == pytest.approx({"cat": 1.0, "dog": -1.0})


@pytest.mark.parametrize(
    "detections", [[], [{"image_id": 0, **EMPTY}], [{"image_id": 0, **EMPTY}, {"image_id": 1, **EMPTY}]]
)
def test_nothing_detected(detections: list[dict]):
    ground_truth = truth((0, 1, (0, 0, 20, 20)), (0, 2, (40, 40, 60, 60)), (1, 1, (0, 0, 100, 100)))
    result = evaluate_coco(ground_truth, detections)
    assert {name: result[name] for name in FIGURES} == dict.fromkeys(FIGURES, 0.0)
    assert result["per_class"] == {"cat": 0.0, "dog": 0.0}


def test_silent_and_without_a_trace(capfd: pytest.CaptureFixture):
    ground_truth = truth((0, 1, (0, 0, 20, 20)), (0, 2, (40, 40, 60, 60), 1))
    before = copy.deepcopy(ground_truth)
    evaluate_coco(ground_truth, [detection(0, (1, 0.9, (0, 0, 20, 20)))])
    assert ground_truth == before
    assert capfd.readouterr() == ("", "")


def test_an_overlap_that_equals_a_threshold_counts_in_float32():
    # 12.3 + 0.1 and the like are not exact in float32; the overlap is 0.5 in decimal numbers.
    ground_truth = truth((0, 1, (612.3, 87.1, 10.2, 20.4)), classes=("cat",))
    result = evaluate_coco(ground_truth, [detection(0, (1, 0.9, (612.3, 87.1, 612.3 + 10.2, 87.1 + 10.2)))])
    assert result["AP50"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ([detection(7, (1, 0.9, (0, 0, 1, 1)))], "got 7"),
        ([detection(0), detection(0)], "each once, got 0"),
        ([detection(0, (3, 0.9, (0, 0, 1, 1)))], "labels among the categories, got 3"),
        ([detection(0) | {"scores": torch.zeros(1)}], r"expected boxes \[n,4\]"),
    ],
)
def test_detections_that_do_not_fit(detections: list[dict], expected: str):
    with pytest.raises(ValueError, match=expected):
        evaluate_coco(truth((0, 1, (0, 0, 20, 20))), detections)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool):
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        evaluate_coco(truth((0, 1, (0, 0, 20, 20))), [detection(0, (1, 0.9, (0, 0, 20, 20)))])
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_figures(real_data, dtype: torch.dtype):
    folder = real_data("coco_eval_truth")
    ground_truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    by_image: dict[int, list[dict]] = {}
    for item in results:
        by_image.setdefault(item["image_id"], []).append(item)
    detections = []
    for image_id, items in by_image.items():
        boxes = torch.tensor([item["bbox"] for item in items], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([item["score"] for item in items], dtype=dtype)
        labels = torch.tensor([item["category_id"] for item in items])
        detections.append({"image_id": image_id, "boxes": boxes.to(dtype), "scores": scores, "labels": labels})
    result = evaluate_coco(ground_truth, detections)
    published = (0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398, 0.386813, 0.593680, 0.595353)
    assert tuple(round(result[name], 6) for name in FIGURES) == published
