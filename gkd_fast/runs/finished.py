"""Finished detectors for anybody's images."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from gkd_fast.config import from_dict
from gkd_fast.evaluation.resizing import Rule, resized
from gkd_fast.runs.detector_file import load_detector


def load(path: str | PathLike[str]) -> FasterRCNN | RetinaNet:
    """A finished detector, ready to detect.

        detector = gkd_fast.load("runs/voc-1/distilled/model.pt")
        (found,) = detector([image])   # boxes [n,4] in pixels of the image, scores [n], labels [n] from 1
        names = [detector.classes[label - 1] for label in found["labels"]]

    Args:
        path: ``model.pt`` of a run's teacher, student or distilled folder, or a converted detector.

    Returns:
        torchvision's detector with the trained weights, on the CPU, in evaluation mode. Like all of torchvision's it
        takes float images [3,H,W] in 0..1 of any size, and it resizes them as those of its training were. Its
        attribute ``classes`` holds the names of the classes.

    Raises:
        InputError: a ValueError; the file is missing, damaged, or no checkpoint of this program.
    """
    checkpoint = load_detector(Path(path))
    data = from_dict(checkpoint.config).data
    detector: FasterRCNN | RetinaNet = checkpoint.build()
    own = detector.transform
    detector.transform = ResizeAsTrained(data.short_side, data.long_side, own.image_mean, own.image_std)
    detector.transform.rule = checkpoint.spec.conventions.resize
    detector.classes = checkpoint.classes
    return detector.eval()


class ResizeAsTrained(GeneralizedRCNNTransform):
    """torchvision's detector transform, with antialiasing as in our training data, or by another library's rule."""

    rule: Rule = "antialiased"

    def resize(self, image: Tensor, target: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any] | None]:
        """A normalised image [3,H,W] and its boxes [B,4], by short and long side."""
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        fractions = image * std + mean  # OpenCV's and Pillow's rules are about whole numbers of 0 to 255
        sample = resized(fractions, self.rule, short_side=self.min_size[-1], long_side=self.max_size)
        sample = (sample - mean) / std
        if target is not None:
            (height, width), size = image.shape[-2:], sample.shape[-2:]
            scale = target["boxes"].new_tensor([size[1] / width, size[0] / height] * 2)
            target = {**target, "boxes": target["boxes"] * scale}
        return sample, target
