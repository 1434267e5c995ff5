from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gkd_fast.config import Config, replace, validate
from gkd_fast.data import Scenes
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import specs
from gkd_fast.detectors.build import build_detector
from gkd_fast.errors import InputError
from gkd_fast.options import changed
from gkd_fast.runs.detector_file import save_detector
from gkd_fast.runs.teacher_check import Sample, check_teacher, stated_ap

WEIGHTS = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"


def given(**model: Any) -> Config:
    return changed(Config(), model)


def prepared(count: int = 5) -> PreparedDataset:
    return PreparedDataset(Scenes(count, size=(64, 64)), short_side=64, long_side=64)


@pytest.mark.parametrize(("reached", "stops"), [(0.39, False), (0.29, False), (0.27, True), (0.0, True)])
def test_a_teacher_far_below_its_ap_stops_the_run(
    reached: float, stops: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def evaluate(sample: PreparedDataset) -> dict[str, Any]:
        seen.append(len(sample))
        return {"AP": reached}

    config = given(teacher_ap=0.4, teacher_checkpoint=Path("t.pt"))
    if stops:
        with pytest.raises(InputError, match=rf"t\.pt: AP {reached:.3f} on 5 .*expected about 0\.400.*--skip-teacher"):
            check_teacher(config, prepared(), evaluate)
    else:
        check_teacher(config, prepared(), evaluate)
    assert "stated 0.400" in capsys.readouterr().out
    check_teacher(replace(config, "run", skip_teacher_check=True), prepared(), evaluate)
    check_teacher(given(teacher_weights="IMAGENET1K_V1"), prepared(), evaluate)
    assert seen == [5]


def test_the_sample_lies_evenly_and_keeps_its_annotations() -> None:
    whole = Scenes(9, size=(64, 64))
    sample = Sample(whole, 3)
    assert sample.indices == [0, 4, 8]
    assert sample[1][1]["image_id"] == whole[4][1]["image_id"]
    truth = sample.ground_truth()
    assert [image["id"] for image in truth["images"]] == [whole.ground_truth()["images"][i]["id"] for i in (0, 4, 8)]
    boxes = sum(len(whole[i][1]["labels"]) for i in (0, 4, 8))
    assert len(truth["annotations"]) == boxes
    assert len(Sample(whole, 50)) == 9


def test_where_the_stated_ap_comes_from(tmp_path: Path) -> None:
    config = Config()
    spec, classes = specs(config.model)[1], ("a", "b")
    path = tmp_path / "model.pt"
    save_detector(path, build_detector(spec, 2), spec, classes, {})
    assert stated_ap(given(teacher_checkpoint=path)) is None
    (tmp_path / "result.json").write_text('{"AP": 0.25}')
    assert stated_ap(given(teacher_checkpoint=path)) == 0.25
    save_detector(path, build_detector(spec, 2), spec, classes, {}, ap=0.5)
    assert stated_ap(given(teacher_checkpoint=path)) == 0.5
    assert stated_ap(given(teacher_checkpoint=path, teacher_ap=0.3)) == 0.3
    assert stated_ap(given(teacher_weights=WEIGHTS)) is None
    assert stated_ap(replace(given(teacher_weights=WEIGHTS), "data", data="coco")) == pytest.approx(0.37)


def test_the_stated_ap_is_a_fraction() -> None:
    with pytest.raises(InputError, match=r"--teacher-ap: expected a fraction such as 0\.398, got 39\.8"):
        validate(given(teacher_ap=39.8))
