"""Reading and checking image files.

Pillow decodes (torchvision depends on it as well): torchvision's own decoders give the same pixels but are
deprecated since 0.29.
"""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gkd_fast.errors import InputError

# The last bytes of a complete file. Files of other formats, or with something after the end, are decoded in full.
_END_MARKER = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def read_image(path: Path) -> torch.Tensor:
    """Decodes an image file to uint8 [3,H,W] RGB; grey becomes RGB, transparency is dropped.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                # Pillow clips 16-bit grey to 255 instead of scaling it.
                pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            else:
                pixels = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others, by the format
        raise _unreadable(path, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def check_image(path: Path) -> tuple[int, int]:
    """(height, width) of an image file that looks complete: header and end marker, decoded only if in doubt.

    Raises:
        InputError: the file is missing, is no image or is cut short.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            marker = _END_MARKER.get(image.format or "")
        complete = marker is not None and _tail(path, len(marker)) == marker
    except Exception as error:
        raise _unreadable(path, error) from error
    if not complete:
        read_image(path)
    return height, width


def _tail(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(-count, os.SEEK_END)
        return file.read()


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: image file not found")
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path}: expected a complete JPEG, PNG or other image file ({reason})")
