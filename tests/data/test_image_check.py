import os
from pathlib import Path

import pytest
from tiny_folders import write_image

from gkd_fast.data.image_check import look_at_images


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from now on."""
    from gkd_fast.data import image_check

    seen: list[Path] = []
    original = image_check.look_at
    monkeypatch.setattr(image_check, "look_at", lambda path: seen.append(path) or original(path))
    return seen


def test_only_new_and_changed_images_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [write_image(tmp_path / f"{name}.png", seed=number) for number, name in enumerate("abc")]
    seen = looked_at(monkeypatch)
    first = look_at_images(paths)
    assert sorted(seen) == paths
    seen.clear()
    assert look_at_images(paths) == first
    assert not seen
    write_image(paths[1], (20, 20), seed=7)
    assert look_at_images(paths)[1].size == (20, 20)
    assert seen == [paths[1]]
    seen.clear()
    os.utime(paths[2], ns=(1, 1))
    look_at_images(paths)
    assert seen == [paths[2]]


def test_what_is_missing_is_not_remembered(tmp_path: Path):
    path = tmp_path / "late.png"
    assert look_at_images([path])[0].fault == "image file not found"
    write_image(path)
    assert not look_at_images([path])[0].fault


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": 0, "images": 3}', b"\x00"])
def test_a_broken_memory_is_made_anew(tmp_path: Path, image_cache: Path, content: bytes):
    path = write_image(tmp_path / "a.png")
    look_at_images([path])
    (memory,) = image_cache.iterdir()
    memory.write_bytes(content)
    assert look_at_images([path])[0].size == (30, 40)


def test_a_folder_that_takes_no_file_is_said(tmp_path: Path, image_cache: Path, capsys: pytest.CaptureFixture[str]):
    image_cache.write_text("a file where the folder should be")
    assert look_at_images([write_image(tmp_path / "a.png")])[0].size == (30, 40)
    assert "not remembered for the next start" in capsys.readouterr().err
