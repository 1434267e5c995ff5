"""Before training: does a given teacher detect here what it is said to detect?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torchvision
from torchvision import tv_tensors

from gkd_fast import parallel
from gkd_fast.config import Config
from gkd_fast.data.annotated import Detectable, Target
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.errors import InputError
from gkd_fast.runs.detector_file import load_detector

IMAGES = 200
LEAST = 0.7  # of the stated AP; on 200 images COCO's AP strays by some hundredths


class Sample:
    """Images of a data set that lie evenly apart.

    Args:
        dataset: the whole.
        images: how many of its images to take, at most.
    """

    def __init__(self, dataset: Detectable, images: int) -> None:
        self.dataset, self.classes = dataset, dataset.classes
        self.indices = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:
        return self.dataset[self.indices[index]]

    def ground_truth(self) -> dict[str, Any]:
        """The annotations of the sample's images, in COCO format."""
        truth = self.dataset.ground_truth()
        images = [truth["images"][index] for index in self.indices]
        ids = {image["id"] for image in images}
        kept = [annotation for annotation in truth["annotations"] if annotation["image_id"] in ids]
        return {**truth, "images": images, "annotations": kept}


def stated_ap(config: Config) -> float | None:
    """The AP that a given teacher is known for, as a fraction.

    The option, else what its checkpoint says, else the figures of the run that trained it, else (on COCO) those of
    torchvision's detection weights.
    """
    model = config.model
    if model.teacher_ap is not None:
        return model.teacher_ap
    if model.teacher.checkpoint:
        known = load_detector(model.teacher.checkpoint).ap
        figures = model.teacher.checkpoint.with_name("result.json")
        return json.loads(figures.read_text()).get("AP") if known is None and figures.is_file() else known
    if "_Weights." in model.teacher.weights and config.data.data == "coco" and not config.data.classes:
        metrics = torchvision.models.get_weight(model.teacher.weights).meta["_metrics"]
        return metrics["COCO-val2017"]["box_map"] / 100
    return None


def teacher_classes(config: Config, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes to detect: in the order of a given teacher that knows them all, unless an order was asked for.

    Args:
        config: of the run.
        classes: of the data.
    """
    path = config.model.teacher.checkpoint
    if config.data.classes or not path or config.data.data == "scenes":
        return classes
    known = load_detector(path).classes
    if not set(classes) <= set(known):
        return classes
    ordered = tuple(name for name in known if name in classes)
    if parallel.is_main() and known != classes:
        cut = f", its outputs for {len(known) - len(classes)} further classes are left out" * (
            len(known) > len(classes)
        )
        print(f"classes: in the teacher's order, {', '.join(ordered[:20])}{cut}", flush=True)
    return ordered


def check_teacher(
    config: Config, dataset: PreparedDataset, evaluate: Callable[[PreparedDataset], dict[str, Any]]
) -> None:
    """Evaluate a given teacher on a sample of the validation images, if it is known what it should reach.

    Args:
        config: of the run.
        dataset: validation images.
        evaluate: the teacher's figures on prepared images.

    Raises:
        InputError: if the teacher is far below its stated AP.
    """
    stated = None if config.run.skip_teacher_check else stated_ap(config)
    if stated is None:
        return
    sample = PreparedDataset(
        Sample(dataset.dataset, IMAGES), short_side=dataset.short_side, long_side=dataset.long_side
    )
    reached = evaluate(sample)["AP"]
    if parallel.is_main():
        print(f"teacher: AP {reached:.3f} on {len(sample)} validation images, stated {stated:.3f}", flush=True)
    if reached < LEAST * stated:
        raise InputError(
            f"{config.model.teacher.checkpoint or config.model.teacher.weights}: AP {reached:.3f} on {len(sample)} "
            f"validation images, expected about {stated:.3f}. The classes may stand in another order, the images may "
            f"be of another size (--short-side), or the weights may follow other conventions (gkd_fast.convert "
            f"--style); --skip-teacher-check trains with it nevertheless"
        )
