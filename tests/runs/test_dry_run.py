"""Every recipe can be built; a dry run trains two steps and says what a run needs."""

from __future__ import annotations

import pytest
import torch

from gkd_fast.cli import train
from gkd_fast.config import validate
from gkd_fast.detectors import build_detector, specs
from gkd_fast.presets import PRESETS, from_presets
from gkd_fast.recipes import RECIPES

SMALL = "--short-side 128 --long-side 160 --proposals 50 --rois 16 --device cpu --min-box 10"


@pytest.mark.parametrize("name", RECIPES)
def test_both_networks_of_a_recipe_are_built(name: str) -> None:
    config = from_presets(name)
    with torch.device("meta"):
        teacher, student = (build_detector(spec, 20) for spec in specs(config.model))
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (teacher, student)]
    assert sizes[0] > 1.2 * sizes[1]
    levels = [len(network.backbone.fpn.inner_blocks) for network in (teacher, student)]
    assert levels == [4, 4] if "fasterrcnn" in name else [3, 3]
    assert teacher.backbone.out_channels == student.backbone.out_channels == 256


def test_recipes_hold_the_published_schedule() -> None:
    assert set(RECIPES) < set(PRESETS)
    coco = from_presets("coco-retinanet-r101-r50")
    assert (coco.optim.lr, coco.optim.batch_size, coco.optim.epochs, coco.optim.milestones) == (0.02, 16, 24, (16, 22))
    assert (coco.model.detector, coco.model.teacher.backbone, coco.model.student.backbone) == (
        "retinanet",
        "resnet101",
        "resnet50",
    )
    assert coco.model.conventions == "mmdet"
    voc = from_presets("voc-fasterrcnn-x101-mobilenetv2")
    assert voc.data.train_split == "VOC2007/trainval+VOC2012/trainval"
    assert (voc.optim.epochs, voc.optim.milestones) == (12, (9,))


@pytest.mark.parametrize("name", ["coco-fasterrcnn-r152-r18", "voc-retinanet-swin-mobilenetv3", "scenes"])
def test_a_dry_run_needs_no_data(name: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(["--preset", name, "--dry-run", *SMALL.split()])
    text = capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    assert "nan" not in text
    for part in ("million parameters", "gkd_global", "TFLOP", "GiB for steps of", "estimate: "):
        assert part in text


def test_a_dry_run_is_valid_without_a_folder_of_data() -> None:
    from gkd_fast.config import replace

    validate(replace(from_presets("coco-fasterrcnn-r101-r50"), "run", dry_run=True))
