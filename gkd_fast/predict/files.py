"""The images that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gkd_fast.data.suffixes import SUFFIXES, is_image
from gkd_fast.errors import InputError


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The image files among and below the paths, each once, in the order given, folders sorted.

    Raises:
        InputError: for no path, a path that does not exist, or a folder without images.
    """
    if not paths:
        raise InputError("IMAGES: expected at least one image or folder, got none")
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if is_image(file) and file.is_file())
            if not inside:
                raise InputError(f"{path}: expected a folder with images ({' '.join(sorted(SUFFIXES))}), found none")
            found |= dict.fromkeys(inside)
        elif path.is_file():
            found[path] = None
        else:
            raise InputError(f"{path}: image file not found")
    return list(found)
