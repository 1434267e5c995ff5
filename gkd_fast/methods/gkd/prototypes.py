"""Prototype generation module (PGM): for every class and level, instances that span both feature spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast import ops, parallel
from gkd_fast.instances import Instances
from gkd_fast.methods.gkd.bank import PrototypeBank
from gkd_fast.methods.gkd.selection import select
from gkd_fast.methods.gkd.settings import GKDSettings
from gkd_fast.pyramids import infer_strides, pool
from gkd_fast.watching import evaluating


@dataclass(frozen=True)
class LabelledBatch:
    """A batch of images with its ground truth, as candidates for prototypes come from it.

    Attributes:
        images: [N,3,H,W], on the device.
        instances: the ground truth.
        image_ids: int64 [N]; None: unknown.
    """

    images: Tensor
    instances: Instances
    image_ids: Tensor | None = None


Pyramids = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
"""Images [N,3,H,W] -> the L maps of the student and the L maps of the teacher."""


@dataclass(frozen=True)
class Candidates:
    """Embeddings of n ground-truth instances on L levels, in the order they were seen.

    Attributes:
        student, teacher: float32 [L,n,C_S], [L,n,C_T], un-normalised.
        labels: int64 [n], class from 0.
        image_ids: int64 [n].
        boxes: float32 [n,4], pixels of the resized image as the networks saw it.
        flipped: bool [n], whether they saw it mirrored.
        strides: the L strides in pixels.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    image_ids: Tensor
    boxes: Tensor
    flipped: Tensor
    strides: tuple[float, ...]


def candidate_indices(labels_per_image: list[set[int]], limit: int, seed: int) -> list[int]:
    """Images to look at, drawn with the seed so that every class is taken from at most `limit` of its images.

    Args:
        labels_per_image: the classes present in each image.
        limit: most images a class.
        seed: of the drawing.
    """
    order = torch.randperm(len(labels_per_image), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: dict[int, int] = {}
    chosen = []
    for index in order:
        wanted = [label for label in labels_per_image[index] if seen.get(label, 0) < limit]
        for label in wanted:
            seen[label] = seen.get(label, 0) + 1
        if wanted:
            chosen.append(index)
    return chosen


@torch.no_grad()
def collect_candidates(
    batches: Iterable[LabelledBatch],
    pyramids: Pyramids,
    settings: GKDSettings,
    *,
    strides: Sequence[float] | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Candidates:
    """Embed every ground-truth box in both spaces: one pass over the images for all classes and levels.

    Args:
        batches: images that are not augmented, nor mirrored.
        pyramids: of both networks, which `embedding_modes` has prepared.
        settings: negative.
        strides: of the student's levels; None: from the sizes of images and maps.
        progress: called with the number of images of every finished batch.

    Raises:
        ValueError: for no batch.
    """
    parts: list[list[Tensor]] = [[], [], [], [], []]
    own_strides: tuple[float, ...] = ()
    seen = 0
    for batch in batches:
        maps = pyramids(batch.images)
        found = [infer_strides(batch.images.shape[-2:], levels) for levels in maps]
        own_strides = found[0] = tuple(strides or found[0])
        count = len(batch.images)
        # A number of no other process's image.
        numbers = (torch.arange(count) + seen) * parallel.world_size() + parallel.rank()
        ids = numbers if batch.image_ids is None else batch.image_ids.cpu()
        image_index = batch.instances.image_index.cpu()
        pooled = [
            pool([level.float() for level in levels], batch.instances, own, settings.negative).cpu()
            for levels, own in zip(maps, found, strict=True)
        ]
        labels, boxes = batch.instances.labels.cpu(), batch.instances.boxes.cpu()
        for part, row in zip(parts, [*pooled, labels, ids[image_index], boxes], strict=True):
            part.append(row)
        seen += count
        progress(count)
    if not seen:
        raise ValueError("candidates: expected at least one batch of images, got none")
    own, other = (torch.cat(part, dim=1) for part in parts[:2])
    labels, image_ids, boxes = (torch.cat(part) for part in parts[2:])
    flipped = torch.zeros_like(labels, dtype=torch.bool)
    return Candidates(own, other, labels, image_ids, boxes, flipped, own_strides)


@contextmanager
def embedding_modes(student: nn.Module, teacher: nn.Module, settings: GKDSettings) -> Iterator[None]:
    """Within, both networks are in evaluation mode, the student's batch normalisation as student_statistics says."""
    norms = [] if settings.student_statistics == "running" else _batch_norms(student)
    with evaluating(teacher), evaluating(student):
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True


def merged(parts: Sequence[Candidates], images: Sequence[int] = ()) -> Candidates:
    """The candidates that several processes found, each image's once.

    Args:
        parts: of each process's share of the images (`gkd_fast.parallel.own_share`).
        images: all image ids, in the order of a pass by one process; empty: process after process.
    """
    if len(parts) == 1:
        return parts[0]
    kept, seen = [], set[int]()
    for part in parts:
        # Shares are filled up with images that an earlier process has.
        kept.append(torch.tensor([image not in seen for image in part.image_ids.tolist()], dtype=torch.bool))
        seen |= set(part.image_ids.tolist())
    columns = {
        name: torch.cat([getattr(part, name)[rows] for part, rows in zip(parts, kept, strict=True)])
        for name in ("labels", "image_ids", "boxes", "flipped")
    }
    embeddings = {
        name: torch.cat([getattr(part, name)[:, rows] for part, rows in zip(parts, kept, strict=True)], 1)
        for name in ("student", "teacher")
    }
    place = {image: number for number, image in enumerate(images)}
    order = torch.tensor([place.get(image, 0) for image in columns["image_ids"].tolist()]).argsort(stable=True)
    return Candidates(
        **{name: value[:, order] for name, value in embeddings.items()},
        **{name: value[order] for name, value in columns.items()},
        strides=parts[0].strides,
    )


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers that use the batch's statistics in training."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]


def density(embeddings: Tensor, bandwidth: float) -> Tensor:
    """rho_i = sum_j exp(-((1 - cos_ij) / bandwidth)^2) of L2-normalised embeddings [...,n,D] -> [...,n]."""
    cosine = embeddings @ embeddings.transpose(-1, -2)
    return torch.exp(-(((1 - cosine) / bandwidth) ** 2)).sum(-1)


def dense_instances(student: Tensor, teacher: Tensor, settings: GKDSettings) -> Tensor:
    """Gamma: the instances of a class that are dense in both spaces and may become prototypes.

    Args:
        student, teacher: L2-normalised [n,C_S], [n,C_T].
        settings: bandwidth, density_quantile, relax_filters, prototypes.

    Returns:
        bool [n]. With relax_filters at least min(n, prototypes) are true: the ones of greatest density (the
        product of both) fill up.

    Raises:
        ValueError: if nothing is left and relax_filters is off.
    """
    rho = torch.stack([density(space, settings.bandwidth) for space in (student, teacher)])
    count = rho.shape[1]
    threshold = rho.sort(dim=1).values[:, min(int(settings.density_quantile * count), count - 1), None]
    dense = (rho > threshold).all(0)
    wanted = min(count, settings.prototypes)
    if settings.relax_filters and int(dense.sum()) < wanted:
        score = rho.prod(0) + dense * (count + 1) ** 2
        dense = torch.zeros_like(dense).index_fill_(0, score.topk(wanted).indices, True)
    if not dense.any():
        raise ValueError(f"density filter: expected at least one of {count} candidates to pass, got none")
    return dense


def generate_bank(candidates: Candidates, classes: tuple[str, ...], settings: GKDSettings) -> PrototypeBank:
    """Density filter and joint matching pursuit for all classes and levels (paper, prototype generation).

    `prototype_selection` may put another choice in the place of the pursuit.

    A class without any instance gets no prototypes.

    Args:
        candidates: embeddings of the ground truth in both spaces.
        classes: the K class names.
        settings: of the method.

    Raises:
        ValueError: if no class has a candidate.
    """
    members = [_large_enough(candidates, label, settings) for label in range(len(classes))]
    sizes = [_prototype_count(rows, settings) for rows in members]
    if not any(sizes):
        raise ValueError("prototypes: expected instances of at least one class, got none")
    levels = torch.arange(len(candidates.strides))[:, None]
    index = torch.cat(
        [picks[:, :size] for picks, size in zip(_pursue(candidates, members, settings), sizes, strict=True)],
        dim=1,
    )
    return PrototypeBank(
        student=candidates.student[levels, index],
        teacher=candidates.teacher[levels, index],
        class_offsets=torch.tensor([0, *sizes]).cumsum(0),
        most=settings.prototypes,
        image_ids=candidates.image_ids[index],
        boxes=candidates.boxes[index],
        flipped=candidates.flipped[index],
        classes=classes,
        strides=candidates.strides,
    )


def _large_enough(candidates: Candidates, label: int, settings: GKDSettings) -> Tensor:
    """The candidates of a class that pass min_box; with relax_filters the largest of the others fill up."""
    rows = torch.where(candidates.labels == label)[0]
    side = (candidates.boxes[rows, 2:] - candidates.boxes[rows, :2]).amin(1)
    large = rows[side > settings.min_box]
    if settings.relax_filters and len(large) < settings.prototypes:
        order = side.argsort(descending=True, stable=True)[: settings.prototypes]
        return rows[order].sort().values
    return large


def _prototype_count(rows: Tensor, settings: GKDSettings) -> int:
    if settings.repeat_picks:
        return settings.prototypes if len(rows) else 0
    return min(len(rows), settings.prototypes)


def _pursue(candidates: Candidates, members: list[Tensor], settings: GKDSettings) -> list[Tensor]:
    """The picks of every class and level, matching pursuit as one padded batch; per class the rows [L,M]."""
    spaces = [F.normalize(space, dim=-1) for space in (candidates.student, candidates.teacher)]
    levels = len(candidates.strides)
    padded = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
    dense = torch.zeros(len(members), levels, padded.shape[1], dtype=torch.bool)
    for label, rows in enumerate(members):
        for own in range(levels if len(rows) else 0):
            dense[label, own, : len(rows)] = dense_instances(spaces[0][own, rows], spaces[1][own, rows], settings)
    if settings.prototype_selection != "pursuit":
        return [_selected(spaces, rows, dense[label], settings) for label, rows in enumerate(members)]
    problem_rows = padded.repeat_interleave(levels, dim=0)
    level = torch.arange(levels).repeat(len(members))[:, None]
    picks = ops.matching_pursuit(
        spaces[0][level, problem_rows],
        spaces[1][level, problem_rows],
        torch.tensor([len(rows) for rows in members]).repeat_interleave(levels),
        picks=settings.prototypes,
        alpha=settings.alpha,
        repeat=settings.repeat_picks,
        candidates=dense.flatten(0, 1),
    )
    rows = problem_rows.gather(1, picks.clamp(min=0))
    return list(rows.unflatten(0, (-1, levels)))


def _selected(spaces: list[Tensor], rows: Tensor, dense: Tensor, settings: GKDSettings) -> Tensor:
    """The rows [L,M] of a class by the other selections; `dense` [L,n]."""
    if not len(rows):
        return rows.new_zeros(len(dense), settings.prototypes)
    picks = [
        select(
            spaces[0][level, rows],
            spaces[1][level, rows],
            own[: len(rows)],
            settings.prototypes,
            settings.prototype_selection,
        )
        for level, own in enumerate(dense)
    ]
    return rows[torch.stack(picks)]
