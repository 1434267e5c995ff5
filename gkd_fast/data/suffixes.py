"""What image files are named."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
"""Names of image files end in one of these, in small or capital letters."""


def is_image(path: Path) -> bool:
    """Whether a name is an image's; hidden files are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
