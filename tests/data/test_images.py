from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folders import write_image

from gkd_fast.data.images import levels_for, look_at, read_image
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
    facts = look_at(path)
    assert (facts.size, facts.fault) == ((30, 40), "")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path: Path, mode: str):
    path = write_image(tmp_path / "image.jpg", mode=mode)
    assert read_image(path).shape == (3, 30, 40)
    assert (look_at(path).size, look_at(path).fault) == ((30, 40), "")


@pytest.mark.parametrize(
    ("values", "levels", "expected"),
    [
        (np.array([[0, 256, 32768, 65535]], dtype=np.uint16), 0, [0, 1, 128, 255]),
        (np.array([[0, 16, 2048, 4095]], dtype=np.uint16), 0, [0, 1, 128, 255]),
        (np.array([[0, 16, 2048, 4095]], dtype=np.uint16), 65536, [0, 0, 8, 15]),
        (np.array([[0, 65536 // 2, 65535, 1]], dtype=np.int32), 0, [0, 128, 255, 0]),
        (np.array([[0, 0.25, 0.5, 1]], dtype=np.float32), 1, [0, 64, 128, 255]),
        (np.array([[0, 64, 128, 255]], dtype=np.float32), 0, [0, 64, 128, 255]),
    ],
)
def test_deep_grey_is_scaled(tmp_path: Path, values: np.ndarray, levels: float, expected: list[int]):
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    assert read_image(tmp_path / "deep.tiff", levels=levels)[1].tolist() == [expected]
    facts = look_at(tmp_path / "deep.tiff")
    assert (facts.low, facts.peak) == (0, values.max())


def test_levels():
    assert [levels_for(peak) for peak in (0.5, 1, 255, 256, 4095, 65535)] == [1, 256, 256, 512, 4096, 65536]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    facts = look_at(tmp_path / "turned.png")
    assert (facts.size, facts.orientation) == ((3, 4), orientation)
    assert facts.upright_size == ((4, 3) if orientation >= 5 else (3, 4))
    upright = read_image(tmp_path / "turned.png")
    assert tuple(upright.shape[1:]) == facts.upright_size
    stored = read_image(tmp_path / "turned.png", upright=False)
    assert tuple(stored.shape[1:]) == (3, 4)
    assert torch.equal(upright, stored) == (orientation == 1)


def test_missing_file(tmp_path: Path):
    assert look_at(tmp_path / "none.jpg").fault == "image file not found"
    with pytest.raises(InputError, match=r"none\.jpg: image file not found"):
        read_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, 0.9])
def test_cut_file(tmp_path: Path, suffix: str, keep: float):
    path = write_image(tmp_path / f"cut.{suffix}", (120, 160))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert look_at(path).fault.startswith("expected a complete JPEG, PNG or other image file (")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damage_inside_is_found(tmp_path: Path, suffix: str):
    path = tmp_path / f"damaged.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    path.write_bytes(content)
    assert "expected a complete" in look_at(path).fault


def test_a_checksum_alone_is_found(tmp_path: Path):
    path = write_image(tmp_path / "sum.png", (60, 80))
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 5] ^= 1  # the last byte of the pixels' checksum
    path.write_bytes(content)
    assert "expected a complete" in look_at(path).fault


def test_something_else_than_an_image(tmp_path: Path):
    (tmp_path / "page.jpg").write_text("<html>Not found</html>")
    assert "expected a complete" in look_at(tmp_path / "page.jpg").fault


def test_bytes_after_the_end_are_fine(tmp_path: Path):
    path = write_image(tmp_path / "tail.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 7)
    assert not look_at(path).fault


def test_too_many_pixels_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_image(tmp_path / "large.png", (100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert look_at(path).fault.startswith("larger than 0 megapixels: expected at most that, got 0")
