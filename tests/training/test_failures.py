"""Damaged states, full disks, dead processes, spoilt images: one clear line, and nothing is lost."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from run_files import assert_goes_on, states

Train = Callable[..., tuple[int, str]]


def cut_short(state: Path) -> str:
    path = next(state.glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1000])
    return r"__0_0.distcp has \d+ of \d+ bytes"


def change_a_byte(state: Path) -> str:
    path = next(state.glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "__0_0.distcp has changed"


def remove_a_file(state: Path) -> str:
    (state / "progress.pt").unlink()
    return "No such file"


@pytest.mark.parametrize("damage", [cut_short, change_a_byte, remove_a_file])
def test_the_state_before_a_damaged_one_is_taken(train: Train, whole: Path, half: Path, damage: Callable) -> None:
    assert train("--resume", "--output", half, plan=("kill in step", 7))[0] == -9
    assert [path.name for path in states(half)] == ["step-00000004", "step-00000006"]
    found = damage(states(half)[-1])
    text = assert_goes_on(train, half, whole)
    assert re.search(rf"warning: .*step-00000006: damaged \(.*{found}.*\); taking the state before it", text)


def test_all_states_damaged_is_an_error(train: Train, half: Path) -> None:
    assert train("--resume", "--output", half, plan=("kill in step", 7))[0] == -9
    for state in states(half):
        cut_short(state)
    code, text = train("--resume", "--output", half)
    assert code == 2
    assert "checkpoints: expected a state that is whole, all are damaged" in text.splitlines()[-1]
    assert len(states(half)) == 2


def test_a_full_disk_loses_nothing(train: Train, whole: Path, half: Path) -> None:
    code, text = train("--resume", "--output", half, plan=("small files", 4, 100_000))
    assert code == 3
    assert "error: " in text.splitlines()[-1]
    assert "step-00000004: could not be written: file size limit reached; make room" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert [path.name for path in (half / "distilled" / "checkpoints").glob("[!.]*")] == ["step-00000002"]
    assert_goes_on(train, half, whole)


def test_metrics_that_cannot_be_written_lose_nothing(train: Train, whole: Path, half: Path) -> None:
    code, text = train("--resume", "--output", half, plan=("small files", 3, (half / "metrics.jsonl").stat().st_size))
    assert code == 3
    assert "metrics.jsonl: could not be written: file size limit reached" in text.splitlines()[-1]
    assert_goes_on(train, half, whole)


def test_two_runs_do_not_train_in_one_folder(train: Train, whole: Path, half: Path) -> None:
    folder = half / "distilled" / "checkpoints"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        code, text = train("--resume", "--output", half)
    assert code == 3
    assert text.splitlines()[-1] == f"error: {folder}: another process trains there; wait for its end or stop it"
    assert states(half) == []
    assert_goes_on(train, half, whole)


def test_a_dead_loader_process_loses_nothing(train: Train, whole: Path, half: Path) -> None:
    code, text = train("--resume", "--output", half, "--workers", 2, plan=("dead worker", 3))
    assert code == 3
    assert text.splitlines()[-1].startswith("error: a loader process died")
    assert "Traceback" not in text
    assert states(half)[-1].name == "step-00000002"
    assert_goes_on(train, half, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_is_named(train: Train, tiny: list[str], tmp_path: Path, workers: int) -> None:
    data = tmp_path / "data"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (data / folder).mkdir(parents=True)
    box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>50</xmax><ymax>50</ymax></bndbox>"
    names = [f"image{number:02}" for number in range(24)]
    for name in names:
        Image.effect_noise((64, 64), 50).convert("RGB").save(data / "JPEGImages" / f"{name}.jpg")
        (data / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>64</width><height>64</height><depth>3</depth>"
            f"</size><object><name>cell</name><difficult>0</difficult>{box}</object></annotation>"
        )
    for split in ("train", "val"):
        (data / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    shutil.copytree(data / "JPEGImages", tmp_path / "whole")
    options = [*tiny, "--preset", "", "--data", "voc", "--data-root", data, "--batch-size", 2, "--output"]
    options += [tmp_path / "run", "--no-cache", "--workers", workers, "--val-split", "val", "--train-split", "train"]

    code, text = train(*options, plan=("spoilt images", 3, str(data / "JPEGImages")))
    assert code == 2, text
    assert text.splitlines()[-1].startswith(f"error: {data}/JPEGImages/image")
    assert "expected a complete JPEG" in text.splitlines()[-1]
    assert "Traceback" not in text
    found = sorted((tmp_path / "run" / "teacher" / "checkpoints").iterdir())
    assert found[-1].name >= "step-00000002"
    shutil.copytree(tmp_path / "whole", data / "JPEGImages", dirs_exist_ok=True)
    code, text = train("--resume", "--output", tmp_path / "run", "--epochs", 1)
    assert code == 0, text


def test_resume_auto_begins_and_goes_on(train: Train, tiny: list[str], tmp_path: Path) -> None:
    output = tmp_path / "new"
    code, text = train(*tiny, "--resume", "auto", "--output", output, plan=("kill after step", 3))
    assert code == -9, text
    code, text = train(*tiny, "--resume", "auto", "--output", output, plan=("kill before step", 1))
    assert code == -9, text
    assert (output / "teacher" / "checkpoints" / "step-00000002").exists()
    code, text = train(*tiny, "--resume", "on", "--output", tmp_path / "none")
    assert code == 2
    assert "none/config.json: expected the configuration of a run, found none" in text


def test_another_batch_size_cannot_go_on(train: Train, half: Path) -> None:
    assert train("--resume", "--output", half, plan=("kill in step", 3))[0] == -9
    code, text = train("--resume", "--output", half, "--batch-size", 2)
    assert code == 2
    assert "--resume: expected 4 steps an epoch as before, got 8" in text.splitlines()[-1]
