"""Image files: what they are, and their pixels.

Pillow decodes (torchvision depends on it as well): torchvision's own decoders give the same pixels but are
deprecated since 0.29. simplejpeg decodes with the same library and says what that has to complain about, on which
Pillow keeps silent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, ImageOps

from gkd_fast.errors import InputError

_DEEP = ("I;16", "I", "F")
_DEEP_COLOUR = "RGB;16"
# Values of a 16-bit colour image below this are all but black in 8 bits: the file holds fewer bits than it says.
_DARK = 4096


@dataclass(frozen=True)
class ImageFacts:
    """What an image file is.

    size: (height, width) in pixels as stored, before any turning. orientation: of its EXIF data, 1 to 8; 1: upright.
    mode: Pillow's; I;16, I and F are grey with more than 8 bits. low, peak: the least and largest value of such an
    image, else 0. frames: images in the file. fault: why it cannot be read, or "".
    """

    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    mode: str = ""
    low: float = 0.0
    peak: float = 0.0
    frames: int = 1
    fault: str = ""

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) once turned as the EXIF data say."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def look_at(path: Path | BytesIO) -> ImageFacts:
    """Decode an image file, or one that is open, once; what is wrong with it is its `fault`, and no error."""
    try:
        with Image.open(path) as image:
            mode, frames = image.mode, 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            size = image.height, image.width
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            orientation = orientation if orientation in range(1, 9) else 1
            if image.format in ("JPEG", "MPO"):
                _decode_jpeg(path.read_bytes() if isinstance(path, Path) else path.getvalue())
                return ImageFacts(size, orientation, mode, frames=frames)
            if "16" in str(image.tile[0][3] if image.tile else "") and mode in ("RGB", "RGBA"):
                mode = _DEEP_COLOUR
            low, peak = _extremes(np.asarray(image), mode)
            is_png = image.format == "PNG"
        if is_png:
            if not isinstance(path, Path):
                path.seek(0)
            with Image.open(path) as image:
                image.verify()  # the checksum of every chunk, which decoding does not look at
        return ImageFacts(size, orientation, mode, low, peak, frames)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others, by the format
        return ImageFacts(fault=_fault(error))


def read_image(path: Path | BytesIO, *, upright: bool = True, levels: float = 0) -> torch.Tensor:
    """Decodes an image file to uint8 [3,H,W] RGB; grey becomes RGB, transparency is dropped.

    Args:
        path: the file, or one that is open.
        upright: turn the image as its EXIF data say.
        levels: values of grey images with more than 8 bits run from 0 to below this (see `levels_for`); 0: by the
            image itself.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image) if upright else image
            if turned.mode.startswith(_DEEP):
                values = np.asarray(turned)
                levels = levels or levels_for(float(values.max()))
                grey = np.clip(np.floor(values * (256 / levels)), 0, 255).astype(np.uint8)
                pixels = np.repeat(grey[..., None], 3, axis=2)
            else:
                pixels = np.array(turned.convert("RGB"))
    except Exception as error:
        raise InputError(f"{path}: {_fault(error)}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def levels_for(peak: float) -> float:
    """The range of grey values up to `peak`: 1 for values of 0 to 1, else the power of two above it, at least 256."""
    return 1.0 if 0 < peak <= 1 and peak != round(peak) else 2.0 ** max(8, math.ceil(math.log2(peak + 1)))


def is_deep(facts: ImageFacts) -> bool:
    """Whether the image is grey with more than 8 bits."""
    return facts.mode.startswith(_DEEP)


def is_dark_colour(facts: ImageFacts) -> bool:
    """Whether a colour image of 16 bits uses so few of them that 8-bit pixels are all but black."""
    return facts.mode == _DEEP_COLOUR and facts.peak < _DARK


def _decode_jpeg(content: bytes) -> None:
    """ValueError for whatever libjpeg complains about."""
    kind = simplejpeg.decode_jpeg_header(content, strict=True)[2]
    simplejpeg.decode_jpeg(content, "CMYK" if kind in ("CMYK", "YCCK") else "GRAY", strict=True)


def _extremes(values: np.ndarray, mode: str) -> tuple[float, float]:
    """The least and largest value of an image with more than 8 bits a channel."""
    if mode == _DEEP_COLOUR:
        return 0.0, float(values[..., :3].max()) * 256 + 255  # Pillow keeps the upper 8 bits
    if not mode.startswith(_DEEP):
        return 0.0, 0.0
    return (float(values.min()), float(values.max())) if np.isfinite(values).all() else (math.nan, math.nan)


def _fault(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "image file not found"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        got = int(re.findall(r"\d+", str(error))[0]) / 1e6
        return f"larger than {most:.0f} megapixels: expected at most that, got {got:.0f}; cut it into tiles"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"expected a complete JPEG, PNG or other image file ({reason})"
