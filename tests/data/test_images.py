from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folders import write_image

from gkd_fast.data.images import check_image, read_image
from gkd_fast.errors import InputError


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGB"), ("png", "L"), ("png", "RGBA"), ("png", "P"), ("bmp", "RGB")]
)
def test_modes_become_rgb(tmp_path: Path, suffix: str, mode: str):
    path = write_image(tmp_path / f"image.{suffix}", mode=mode)
    image = read_image(path)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 30, 40))
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert check_image(path) == (30, 40)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path: Path, mode: str):
    path = write_image(tmp_path / "image.jpg", mode=mode)
    assert read_image(path).shape == (3, 30, 40)
    assert check_image(path) == (30, 40)


def test_sixteen_bit_grey_is_scaled(tmp_path: Path):
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[1].tolist() == [[0, 1, 128, 255]]


def test_missing_file(tmp_path: Path):
    for function in (read_image, check_image):
        with pytest.raises(InputError, match=r"none\.jpg: image file not found"):
            function(tmp_path / "none.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, 0.9])
def test_cut_file(tmp_path: Path, suffix: str, keep: float):
    path = write_image(tmp_path / f"cut.{suffix}", (120, 160))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=rf"cut\.{suffix}: expected a complete") as error:
        check_image(path)
    assert "\n" not in str(error.value)


def test_something_else_than_an_image(tmp_path: Path):
    (tmp_path / "page.jpg").write_text("<html>Not found</html>")
    with pytest.raises(InputError, match=r"page\.jpg: expected a complete"):
        check_image(tmp_path / "page.jpg")


def test_bytes_after_the_end_are_fine(tmp_path: Path):
    path = write_image(tmp_path / "tail.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 7)
    assert check_image(path) == (30, 40)


def test_whole_files_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_image(tmp_path / "whole.jpg")

    def refuse(path: Path) -> None:
        raise AssertionError(f"decoded {path}")

    monkeypatch.setattr("gkd_fast.data.images.read_image", refuse)
    assert check_image(path) == (30, 40)
