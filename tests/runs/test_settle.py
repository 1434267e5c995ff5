"""What a run makes of the options: format, sizes, networks, precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_folders import write_voc

from gkd_fast.cli.parsing import given_options
from gkd_fast.config import PLAIN, Config, replace
from gkd_fast.data import AnnotatedImages, open_dataset
from gkd_fast.runs.choice import Device, Statistics, choose, lines
from gkd_fast.runs.settle import settle, with_format

CPU = Device(memory=0, cores=2, main_memory=16)
GPU = Device(memory=80, cores=16, main_memory=128)


def write(root: Path, size: tuple[int, int], side: int, images: int = 10) -> AnnotatedImages:
    """Images of (height, width) with square boxes of one side, in pixels."""
    boxes = [("cat", 0, (1, 1, side, side)), ("dog", 0, (11, 11, 10 + side, 10 + side))]
    write_voc(root, {f"image{number}": boxes for number in range(images)}, size="")
    for path in (root / "JPEGImages").iterdir():
        Image.open(path).resize(size[::-1]).save(path)
    return open_dataset(root)


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether ImageNet weights can be had."""
    found = {"there": True}
    monkeypatch.setattr("gkd_fast.runs.choice.weights_at_hand", lambda backbone, name: found["there"])
    return found


def chosen(dataset: AnnotatedImages, device: Device, *given: str, config: Config = PLAIN) -> Config:
    return choose(config, dataset, device, given)[0]


def test_figures(tmp_path: Path) -> None:
    figures = Statistics.of(write(tmp_path, (200, 320), 50))
    assert (figures.images, figures.short, figures.aspect) == (10, 200, 1.6)
    assert [len(own) for own in figures.shapes] == [10, 10]
    assert figures.small == pytest.approx(50 / 200)


def test_small_boxes_ask_for_large_images(tmp_path: Path) -> None:
    large = chosen(write(tmp_path / "large", (480, 640), 120), CPU)
    small = chosen(write(tmp_path / "small", (480, 640), 26), CPU)
    assert (large.data.short_side, large.data.long_side, large.model.anchor_size) == (240, 320, 32)
    assert (small.data.short_side, small.model.anchor_size) == (304, 16)


def test_small_images_are_not_blown_up(tmp_path: Path) -> None:
    assert chosen(write(tmp_path, (60, 80), 20), CPU).data.short_side <= 120


def test_steps_by_images_and_device(tmp_path: Path) -> None:
    few, more = write(tmp_path / "few", (60, 80), 20, 10), write(tmp_path / "more", (60, 80), 20, 40)
    assert [chosen(data, CPU).optim.epochs for data in (few, more)] == [200, 60]
    tiny = write(tmp_path / "tiny", (480, 640), 10, 40)  # images of 320 x 427, so 600 steps times 0.5625
    assert (chosen(tiny, CPU).data.short_side, chosen(tiny, CPU).optim.epochs) == (320, 34)
    assert chosen(more, GPU).optim.batch_size == 16


def test_networks_by_device(tmp_path: Path, weights: dict[str, bool]) -> None:
    dataset = write(tmp_path, (60, 80), 20)
    assert chosen(dataset, CPU).model.teacher.backbone == "mobilenet_v2"
    assert chosen(dataset, GPU).model.teacher.backbone == "resnet101"
    assert chosen(dataset, Device(8, 8, 32)).model.student.backbone == "resnet18"
    weights["there"] = False
    config, choices = choose(PLAIN, dataset, CPU, ())
    assert (config.model.teacher.weights, config.model.pyramid_norm) == ("", True)
    assert "IMAGENET1K_V1 of mobilenet_v2 could not be had" in "\n".join(lines(choices))


def test_options_that_are_given_stay(tmp_path: Path) -> None:
    dataset = write(tmp_path, (480, 640), 100)
    config = replace(PLAIN, "data", short_side=96)
    config = replace(config, "optim", epochs=7, batch_size=2)
    made, choices = choose(config, dataset, CPU, {"short_side", "epochs", "batch_size", "teacher"})
    assert (made.data.short_side, made.data.long_side) == (96, 128)
    assert (made.optim.epochs, made.optim.teacher_epochs, made.optim.batch_size) == (7, 120, 2)
    assert made.model.teacher == PLAIN.model.teacher
    assert made.model.student.width == 0.35
    named = {name for choice in choices for name in choice.values}
    assert not named & {"short_side", "epochs", "batch_size", "teacher", "teacher_weights"}


def test_what_is_chosen_is_said_as_options(tmp_path: Path) -> None:
    text = "\n".join(lines(choose(PLAIN, write(tmp_path, (480, 640), 100), CPU, ())[1]))
    for part in ("--short-side 240 --long-side 320: images of 480 pixels", "--anchor-size 32:", "--no-pyramid-norm"):
        assert part in text


def test_options_of_a_command_line() -> None:
    words = ["--short-side=96", "--no-cache", "--terms", "gkd", "--classes", "a", "epochs", "--teacher_width", "1"]
    assert given_options(words, Config) == {"short_side", "cache", "method", "classes", "teacher_width"}


def test_settled_settings_have_a_format_and_are_chosen_once(tmp_path: Path, capsys) -> None:
    write(tmp_path, (60, 80), 20)
    config = replace(PLAIN, "data", data_root=tmp_path)
    config = replace(config, "run", device="cpu")
    made, images = settle(config, {"data_root"})
    assert (made.data.data, images.classes) == ("voc", ("cat", "dog"))
    assert (len(images.train), len(images.val)) == (8, 2)
    out = capsys.readouterr().out
    assert "data: PASCAL VOC" in out
    assert "chosen from the data and the device" in out
    again, _ = settle(made, {"data_root"}, new=False)
    assert again == made
    assert "chosen" not in capsys.readouterr().out


def test_a_preset_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, (60, 80), 20)
    config = replace(Config(preset="scenes"), "data", data_root=tmp_path)
    assert settle(config, set())[0] == replace(config, "data", data="voc")


def test_deep_grey_images_keep_the_scale_of_the_training(tmp_path: Path) -> None:
    dataset = write(tmp_path, (60, 80), 20)
    for number, record in enumerate(dataset.records):
        Image.fromarray(torch.full((60, 80), 300 + number).numpy().astype("uint16")).save(
            record.path.with_suffix(".png")
        )
        record.path.unlink()
    config = replace(Config(preset="scenes"), "data", data_root=tmp_path)
    assert settle(config, set())[0].data.grey_levels == 512


def test_formats() -> None:
    assert with_format(PLAIN).data.data == "scenes"
    assert with_format(replace(PLAIN, "data", train_annotations=Path("boxes.json"))).data.data == "coco"


def test_amp_without_instructions_for_it(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    config = replace(replace(Config(), "run", amp=True, device="cpu"), "data", scenes_train=2, scenes_val=2)
    for there, given, left in ((True, set(), True), (False, set(), False), (False, {"amp_dtype"}, True)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda there=there: there)
        assert settle(config, given)[0].run.amp == left
        assert ("no instructions for bf16" in capsys.readouterr().out) == (not left)
