"""The distiller of torchvision's detectors, and what it is fed with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast.detectors import DetectorAdapter, StudentPass, plain_targets
from gkd_fast.detectors.base import ground_truth_instances
from gkd_fast.detectors.folding import fold_batch_norm
from gkd_fast.distiller import Distiller
from gkd_fast.instances import Instances
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import (
    Candidates,
    GKDSettings,
    LabelledBatch,
    PrototypeBank,
    collect_candidates,
    embedding_modes,
)

Batches = Iterable[tuple[list[Tensor], list[dict[str, Any]]]]
"""uint8 images [3,H,W] and targets (boxes, labels from 1, image_id), not augmented."""

_EXAMPLE = 64  # pixels a side of the image that shows the channels


def freeze_teacher(
    model: nn.Module, device: torch.device, shard: Callable[[nn.Module, torch.device], None] | None = None
) -> None:
    """Make a detector a teacher for good: frozen, in evaluation mode, its batch normalisation folded.

    Args:
        model: changed in place.
        device: to which it is moved.
        shard: moves it there in parts; None: as a whole.
    """
    model.eval().requires_grad_(False)
    fold_batch_norm(model.get_submodule("backbone"))
    if shard:
        shard(model, device)
    else:
        model.to(device)


def build_distiller(
    teacher: DetectorAdapter, student: DetectorAdapter, classes: tuple[str, ...], settings: Settings
) -> Distiller:
    """The distiller that training uses: `refresh` alone generates prototypes, at the beginning of epochs.

    Args:
        teacher: frozen, on the device.
        student: on the device, and not yet sharded.
        classes: names.
        settings: of the methods.
    """
    device = next(student.model.parameters()).device
    return Distiller(
        teacher.model,
        student.model,
        classes,
        ["backbone"],
        example=torch.zeros(1, 3, _EXAMPLE, _EXAMPLE, device=device),
        stage="one_stage" if student.stage == "one_stage" else "two_stage",
        settings=settings,
        run_student=_run_backbone,
        run_teacher=_run_backbone,
        refresh_steps=None,
        checked_steps=0,
        detectors=(student, teacher),
    )


def distilled_terms(distiller: Distiller, own: StudentPass, images: Tensor, kappa: float) -> dict[str, Tensor]:
    """The distillation terms of a step of `build_distiller`'s student.

    Args:
        distiller: of the student.
        own: its pass.
        images: [N,3,H,W] that it ran on.
        kappa: attenuation.
    """
    distiller.attenuation = kappa
    truth = ground_truth_instances(own.targets)
    image_ids, flipped = ids_and_flips(own.targets)
    return distiller(
        images,
        truth.boxes,
        truth.labels,
        truth.image_index,
        image_ids=image_ids,
        flipped=flipped,
        own=own,
    )


def ids_and_flips(targets: Sequence[dict[str, Any]]) -> tuple[list[int], list[bool]]:
    """The images' numbers in the data set, and whether they are mirrored."""
    return [target["image_id"] for target in targets], [bool(target.get("flipped", False)) for target in targets]


def graph_terms(
    distiller: Distiller,
    own: StudentPass,
    images: Tensor,
    truth: Instances,
    kappa: Tensor,
    bank: PrototypeBank | None,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """The same as a function of tensors whose sizes do not depend on data; changes nothing of the distiller.

    Returns:
        The terms, and `Distiller.embeddings` of the ground truth where the distiller is to remember them.

    Args:
        distiller: of the student.
        own: its pass.
        images: [N,3,H,W] that it ran on.
        truth: the ground truth, with padding of class -1.
        kappa: attenuation, a scalar on the device.
        bank: prototypes in the place of the distiller's, from `padded_bank`.
    """
    with torch.no_grad():
        assert distiller.detectors is not None
        teacher = list(distiller.detectors[1].model.backbone(images).values())
    step = distiller._step(list(own.features), teacher, images, truth, own)
    real = (truth.labels >= 0).to(truth.boxes.dtype)
    weights = real.expand(len(own.features), -1)
    terms = distiller._terms(dataclasses.replace(step, weights=weights, kappa=kappa, bank=bank))
    if bank is not None and "gkd_global" in terms:
        # A mean over all prototypes, of which those that fill up the bank add nothing.
        terms["gkd_global"] = terms["gkd_global"] * (bank.student.shape[1] / bank.class_offsets[-1])
    return terms, None if distiller.rings is None else distiller.embeddings(step)


def padded_bank(bank: PrototypeBank | None) -> PrototypeBank | None:
    """A bank of as many prototypes as there may be; those behind the last class belong to none."""
    if bank is None:
        return None
    missing = len(bank.classes) * bank.most - bank.student.shape[1]
    filled: dict[str, Any] = {
        name: F.pad(value, (0,) * (2 * (value.dim() - 2)) + (0, missing))
        for name, value in vars(bank).items()
        if isinstance(value, Tensor) and name != "class_offsets"
    }
    return dataclasses.replace(bank, **filled)


def passed_batches(student: DetectorAdapter, batches: Batches, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Batches as `Distiller.refresh` takes them."""
    for batch in _labelled(student, batches, device):
        truth = batch.instances
        yield batch.images, truth.boxes, truth.labels, batch.image_ids, truth.image_index


def embed_ground_truth(
    student: DetectorAdapter, teacher: DetectorAdapter, batches: Batches, settings: GKDSettings, device: torch.device
) -> Candidates:
    """The ground truth of some images in the spaces of both networks, which need no distiller for it."""

    def pyramids(images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return list(student.model.backbone(images).values()), list(teacher.model.backbone(images).values())

    with embedding_modes(student.model, teacher.model, settings):
        return collect_candidates(_labelled(student, batches, device), pyramids, settings)


def _labelled(student: DetectorAdapter, batches: Batches, device: torch.device) -> Iterator[LabelledBatch]:
    """Batches normalised and padded as the student has them."""
    for images, targets in batches:
        batch = student.batch([image.to(device) for image in images])
        truth = ground_truth_instances(plain_targets(targets, device))
        yield LabelledBatch(batch.tensors, truth, torch.tensor([target["image_id"] for target in targets]))


def _run_backbone(network: Any, images: Tensor) -> Any:
    return network.backbone(images)
