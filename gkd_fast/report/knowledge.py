"""Prototypes, robust weights and detections of one run, as parts of a page."""

from __future__ import annotations

from dataclasses import replace
from html import escape

import torch
from torch import Tensor, nn

from gkd_fast import ops
from gkd_fast.data.loader import build_loader
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.data.scenes import CONDITIONS
from gkd_fast.detectors import adapt
from gkd_fast.evaluation.one_image import detect_image
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.predict.drawing import class_colours
from gkd_fast.report.pictures import Gallery, boxed, evenly, symbol
from gkd_fast.report.runs import Run
from gkd_fast.training.distilling import embed_ground_truth

_MOST_CLASSES = 20
_MOST_IMAGES = 200


def prototype_gallery(bank: PrototypeBank, gallery: Gallery, each: int) -> str:
    """A row for every class, a column for every level, with up to `each` prototypes."""
    head = "".join(f"<th>stride {stride}</th>" for stride in bank.strides)
    rows = []
    for number, name in enumerate(bank.classes[:_MOST_CLASSES]):
        first, last = bank.class_offsets[number : number + 2].tolist()
        cells = []
        for level in range(len(bank.strides)):
            crops = []
            for at in range(first, min(last, first + each)):
                image_id, box = int(bank.image_ids[level, at]), bank.boxes[level, at]
                flipped = bank.flipped is not None and bool(bank.flipped[level, at])
                crops.append(gallery.crop(image_id, box, flipped=flipped, side=44, note=f"{name}, image {image_id}"))
            cells.append(f'<td><div class="crops">{"".join(crops)}</div></td>')
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    more = len(bank.classes) - len(rows)
    note = f"<p>{more} more classes are not shown.</p>" if more > 0 else ""
    return f'<div class="wide"><table class="gallery"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>{note}'


class Trust:
    """Robust weights of validation instances: omega, the mean over the levels.

    Attributes:
        weights: [n].
        labels: int64 [n], class from 0.
        image_ids: int64 [n].
        boxes: [n,4] in pixels of the resized images.
        conditions: int64 [n] into `CONDITIONS`, or None for data that have none.
    """

    def __init__(
        self, run: Run, student: nn.Module, teacher: nn.Module, bank: PrototypeBank, data: PreparedDataset
    ) -> None:
        loader = build_loader(
            data, batch_size=8, shuffle=False, seed=0, workers=0, indices=range(min(len(data), _MOST_IMAGES))
        )
        batches = list(loader)
        config = replace(run.config.distill, student_statistics="running")
        found = embed_ground_truth(adapt(student), adapt(teacher), batches, config, torch.device("cpu"))
        _, omega = ops.pairwise_discrepancy(
            found.student, found.teacher, bank.student, bank.teacher, found.labels, bank.class_offsets
        )
        self.weights, self.labels = omega.mean(0), found.labels
        self.image_ids, self.boxes = found.image_ids, found.boxes
        targets = [target for _, targets in batches for target in targets]
        self.conditions = torch.cat([target["condition"] for target in targets]) if "condition" in targets[0] else None

    def extremes(self, gallery: Gallery, classes: tuple[str, ...], count: int, among: Tensor | None = None) -> str:
        """The instances of least and of greatest weight, best first, each with its weight."""
        index = torch.arange(len(self.weights)) if among is None else torch.where(among)[0]
        order = index[self.weights[index].argsort(descending=True, stable=True)]
        half = min(count, len(order) // 2)
        rows = {"most trusted": order[:half], "least trusted": order[len(order) - half :].flip(0)}
        return "".join(f"<h5>{title}</h5>{self._strip(found, gallery, classes)}" for title, found in rows.items())

    def _strip(self, index: Tensor, gallery: Gallery, classes: tuple[str, ...]) -> str:
        cells = []
        for at in index.tolist():
            name = classes[int(self.labels[at])]
            crop = gallery.crop(int(self.image_ids[at]), self.boxes[at], side=72, note=name)
            cells.append(f"<figure>{crop}<figcaption>{float(self.weights[at]):.2f}</figcaption></figure>")
        return f'<div class="strip">{"".join(cells)}</div>'

    def groups(self) -> dict[str, Tensor]:
        """For each condition that is there, which instances have it; empty for data without conditions."""
        if self.conditions is None:
            return {}
        masks = {name: self.conditions == number for number, name in enumerate(CONDITIONS)}
        return {name: mask for name, mask in masks.items() if mask.any()}

    def section(self, gallery: Gallery, classes: tuple[str, ...], count: int) -> str:
        """All instances; on scenes each condition beside the others, with the mean weight."""
        mean = f"<p>Mean weight of {len(self.weights)} instances: {float(self.weights.mean()):.3f}.</p>"
        columns = [
            f'<div class="card"><h4>{name} <small>{int(mask.sum())} instances, mean '
            f"{float(self.weights[mask].mean()):.3f}</small></h4>"
            f"{self.extremes(gallery, classes, min(count, 5), mask)}</div>"
            for name, mask in self.groups().items()
        ]
        return f'{mean}{self.extremes(gallery, classes, count)}<div class="columns">{"".join(columns)}</div>'


def side_by_side(key: str, models: dict[str, nn.Module], data: PreparedDataset, count: int, score: float) -> str:
    """Images with the ground truth and with what each model finds, score at least `score`."""
    colours = class_colours(len(data.classes))
    rows = []
    for index in evenly(len(data), count):
        image, target = data[index]
        image, name = image.as_subclass(Tensor), f"{key}-{index}"
        size = tuple(image.shape[-2:])
        truth = (target["labels"] - 1).tolist()
        views = {"ground truth": (target["boxes"].as_subclass(Tensor), truth, [data.classes[k] for k in truth])}
        for title, model in models.items():
            found = detect_image(model, image, short_side=data.short_side, long_side=data.long_side, score=score)
            labels = (found["labels"] - 1).tolist()
            texts = [f"{data.classes[k]} {s:.2f}" for k, s in zip(labels, found["scores"].tolist(), strict=True)]
            views[title] = found["boxes"], labels, texts
        cells = "".join(
            f"<figure><figcaption>{escape(title)}</figcaption>{boxed(name, size, *view, colours)}</figure>"
            for title, view in views.items()
        )
        rows.append(f'{symbol(name, image)}<div class="row">{cells}</div>')
    return "".join(rows)
