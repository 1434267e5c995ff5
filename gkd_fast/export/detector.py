"""A trained detector for use without this package, compared to the original."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import resize

from gkd_fast.config import from_dict
from gkd_fast.data.images import read_image
from gkd_fast.data.scenes import Scenes
from gkd_fast.data.transforms import resized_size
from gkd_fast.errors import InputError, RunError
from gkd_fast.export.comparison import differences, plain_detections
from gkd_fast.export.formats import Format, check_request
from gkd_fast.export.writers import write_onnx, write_program, write_torchvision
from gkd_fast.runs.detector_file import load_detector

_WRITERS = {"torchvision": write_torchvision, "torch_export": write_program, "onnx": write_onnx}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        classes: that it detects, labels from 1.
        size: height and width of the image that it was compared by, in pixels.
        detections: how many of the original's it repeated; None: not compared, for want of onnxruntime.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    detections: int | None


def export_detector(
    path: Path, output: Path, kind: Format, *, size: tuple[int, int] | None = None, image: Path | None = None
) -> Exported:
    """Write a trained detector as plain torchvision weights, as a torch.export program or as ONNX, and compare.

    Args:
        path: model.pt of a run.
        output: file to write.
        kind: form of the file.
        size: height and width of the images that a program or graph takes, in pixels; None: as trained, 4 by 3.
        image: to compare by; None: a drawn scene.

    Raises:
        InputError: for a file, a size or a detector that cannot be used.
        RunError: if what was written detects anything else than the original.
    """
    check_request(path, output, kind, size)
    checkpoint = load_detector(path)
    data = from_dict(checkpoint.config).data
    size = size or (data.short_side, min(data.long_side, round(data.short_side * 4 / 3)))
    if kind == "torchvision":  # which resizes by itself
        size = resized_size(size, short_side=data.short_side, long_side=data.long_side)
    sample = _sample(image, size)
    written = _WRITERS[kind](checkpoint, output, sample)
    if written is None:
        return Exported(checkpoint.classes, size, None)
    expected = plain_detections(checkpoint.build().eval())(sample)
    if not len(expected[0]):
        raise InputError("--image: expected an image in which the detector finds something, to compare by")
    if difference := differences(expected, written(sample)):
        raise RunError(f"{output}: differs from {path} on the sample image: {difference}")
    return Exported(checkpoint.classes, size, len(expected[0]))


def _sample(path: Path | None, size: tuple[int, int]) -> Tensor:
    """An image float32 [3,H,W] in 0..1."""
    drawn = max(64, size[0]), max(64, size[1])
    image = read_image(path) if path else Scenes(1, size=drawn)[0][0].as_subclass(Tensor)
    return resize(image, list(size), antialias=True).float().div(255)
