"""``gkd-fast export``: a trained detector for use without this package, compared to the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_fast.cli.parsing import parse
from gkd_fast.errors import InputError
from gkd_fast.export.formats import Format, check_request

_DESCRIPTION = """Write a trained detector as plain torchvision weights, as a torch.export program or as ONNX, and
compare its detections to the original's on a sample image; the command fails where they differ."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export of one checkpoint."""

    checkpoint: Path | None = None
    """Trained detector: model.pt of a run's teacher, student or distilled folder."""
    format: Format = "torchvision"
    """torchvision: a state dict, and beside it a JSON that says how to build the detector; torch_export: a program
    of torch.export; onnx: an ONNX graph. The latter two take one resized image, float [3,H,W] in 0..1."""
    output: Path | None = None
    """File to write (.pth, .pt2, .onnx)."""
    size: tuple[int, int] | None = None
    """Height and width of the images that a program or graph takes, in pixels; none: as trained, 4 by 3."""
    image: Path | None = None
    """Image to compare by; none: a drawn scene."""


def main(arguments: Sequence[str]) -> None:
    """Parse, write, compare."""
    options = parse(arguments, "export", _DESCRIPTION, ExportConfig())
    if options.checkpoint is None or options.output is None:
        missing = "--checkpoint" if options.checkpoint is None else "--output"
        raise InputError(f"{missing}: expected a file, got nothing; --help shows all options")
    check_request(options.checkpoint, options.output, options.format, options.size)
    from gkd_fast.export import export_detector

    done = export_detector(options.checkpoint, options.output, options.format, size=options.size, image=options.image)
    print(f"{options.output}: {options.format}, classes {', '.join(done.classes)}")
    if done.detections is None:
        print("not compared: that needs the package onnxruntime; pip install 'gkd_fast[export]'")
    else:
        height, width = done.size
        print(f"the same {done.detections} detections as {options.checkpoint} at {height} x {width} pixels")
