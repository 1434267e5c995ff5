"""Formats that a detector is written in, and what can be said of a wish before anything is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from gkd_fast.detectors.settings import check_checkpoint
from gkd_fast.errors import InputError

Format = Literal["torchvision", "torch_export", "onnx"]


def check_request(path: Path, output: Path, kind: Format, size: tuple[int, int] | None) -> None:
    """Check the arguments of `gkd_fast.export.export_detector`.

    Raises:
        InputError: naming the option, what was expected and what was given.
    """
    if size and min(size) < 32:
        raise InputError(f"--size: expected a height and a width of at least 32 pixels, got {size}")
    if not output.parent.is_dir():
        raise InputError(f"--output: expected a file in a folder that exists, got {output}")
    if kind == "onnx" and not installed("onnxscript"):
        raise InputError("--format: onnx needs the package onnxscript; pip install 'gkd_fast[export]'")
    check_checkpoint(path)


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
