"""Prototype generation module (PGM): for every class and level, instances that span both feature spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd_fast import ops
from gkd_fast.config import DistillConfig
from gkd_fast.detectors import DetectorAdapter, plain_targets, pyramid_strides
from gkd_fast.detectors.base import ground_truth_instances
from gkd_fast.methods.gkd.bank import PrototypeBank

Batches = Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]]


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
    strides: tuple[int, ...]


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
    student: DetectorAdapter,
    teacher: DetectorAdapter,
    batches: Batches,
    config: DistillConfig,
    device: torch.device,
    *,
    progress: Callable[[int], None] = lambda images: None,
) -> Candidates:
    """Embed every ground-truth box in both spaces: one pass over the images for all classes and levels.

    Args:
        student, teacher: both networks, in evaluation mode during the pass.
        batches: uint8 images and targets, not augmented.
        config: student_statistics and negative.
        device: of the networks.
        progress: called with the number of images of every finished batch.
    """
    parts: list[list[Tensor]] = [[], [], [], [], [], []]
    strides: tuple[int, ...] = ()
    training = student.model.training
    student.model.eval()
    teacher.model.eval()
    norms = [] if config.student_statistics == "running" else _batch_norms(student.model)
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    for images, targets in batches:
        batch = student.batch([image.to(device) for image in images])
        instances = ground_truth_instances(plain_targets(targets, device))
        maps = [list(network.pyramid(batch).values()) for network in (student, teacher)]
        strides = tuple(pyramid_strides(batch.tensors.shape, maps[0]))
        ids = torch.tensor([target["image_id"] for target in targets])
        flipped = torch.tensor([bool(target.get("flipped", False)) for target in targets])
        image_index = instances.image_index.cpu()
        pooled = [
            ops.box_mean_pool(
                [level.float() for level in levels],
                instances.boxes,
                instances.image_index,
                strides,
                negative=config.negative,
            ).cpu()
            for levels in maps
        ]
        rows = [*pooled, instances.labels.cpu(), ids[image_index], instances.boxes.cpu(), flipped[image_index]]
        for part, row in zip(parts, rows, strict=True):
            part.append(row)
        progress(len(images))
    for norm in norms:
        norm.track_running_stats = True
    student.model.train(training)
    if not strides:
        raise ValueError("candidates: expected at least one batch of images, got none")
    embeddings = [torch.cat(part, dim=1) for part in parts[:2]]
    return Candidates(*embeddings, *(torch.cat(part) for part in parts[2:]), strides=strides)


def merged(parts: Sequence[Candidates], images: Sequence[int]) -> Candidates:
    """The candidates that several processes found, in the order of a pass by one process.

    Args:
        parts: of each process's share of the images (`gkd_fast.parallel.own_share`).
        images: all image ids, in order.
    """
    if len(parts) == 1:
        return parts[0]
    # The first image belongs to the first process; in the other shares it is filling.
    kept = [torch.where((part.image_ids != images[0]) | (rank == 0))[0] for rank, part in enumerate(parts)]
    place = {image: number for number, image in enumerate(images)}
    image_ids = torch.cat([part.image_ids[rows] for part, rows in zip(parts, kept, strict=True)])
    order = torch.tensor([place[image] for image in image_ids.tolist()]).argsort(stable=True)
    embeddings = {
        name: torch.cat([getattr(part, name)[:, rows] for part, rows in zip(parts, kept, strict=True)], 1)[:, order]
        for name in ("student", "teacher")
    }
    columns = {
        name: torch.cat([getattr(part, name)[rows] for part, rows in zip(parts, kept, strict=True)])[order]
        for name in ("labels", "boxes", "flipped")
    }
    return Candidates(**embeddings, **columns, image_ids=image_ids[order], strides=parts[0].strides)


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers that use the batch's statistics in training."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]


def density(embeddings: Tensor, bandwidth: float) -> Tensor:
    """rho_i = sum_j exp(-((1 - cos_ij) / bandwidth)^2) of L2-normalised embeddings [...,n,D] -> [...,n]."""
    cosine = embeddings @ embeddings.transpose(-1, -2)
    return torch.exp(-(((1 - cosine) / bandwidth) ** 2)).sum(-1)


def dense_instances(student: Tensor, teacher: Tensor, config: DistillConfig) -> Tensor:
    """Gamma: the instances of a class that are dense in both spaces and may become prototypes.

    Args:
        student, teacher: L2-normalised [n,C_S], [n,C_T].
        config: bandwidth, density_quantile, relax_filters, prototypes.

    Returns:
        bool [n]. With relax_filters at least min(n, prototypes) are true: the ones of greatest density (the
        product of both) fill up.

    Raises:
        ValueError: if nothing is left and relax_filters is off.
    """
    rho = torch.stack([density(space, config.bandwidth) for space in (student, teacher)])
    count = rho.shape[1]
    threshold = rho.sort(dim=1).values[:, min(int(config.density_quantile * count), count - 1), None]
    dense = (rho > threshold).all(0)
    wanted = min(count, config.prototypes)
    if config.relax_filters and int(dense.sum()) < wanted:
        score = rho.prod(0) + dense * (count + 1) ** 2
        dense = torch.zeros_like(dense).index_fill_(0, score.topk(wanted).indices, True)
    if not dense.any():
        raise ValueError(f"density filter: expected at least one of {count} candidates to pass, got none")
    return dense


def generate_bank(candidates: Candidates, classes: tuple[str, ...], config: DistillConfig) -> PrototypeBank:
    """Density filter and joint matching pursuit for all classes and levels (paper, prototype generation).

    A class without any instance gets no prototypes.

    Args:
        candidates: embeddings of the ground truth in both spaces.
        classes: the K class names.
        config: the method's settings.

    Raises:
        ValueError: if no class has a candidate.
    """
    members = [_large_enough(candidates, label, config) for label in range(len(classes))]
    sizes = [_prototype_count(rows, config) for rows in members]
    if not any(sizes):
        raise ValueError("prototypes: expected instances of at least one class, got none")
    levels = torch.arange(len(candidates.strides))[:, None]
    index = torch.cat(
        [picks[:, :size] for picks, size in zip(_pursue(candidates, members, config), sizes, strict=True)],
        dim=1,
    )
    return PrototypeBank(
        student=candidates.student[levels, index],
        teacher=candidates.teacher[levels, index],
        class_offsets=torch.tensor([0, *sizes]).cumsum(0),
        most=config.prototypes,
        image_ids=candidates.image_ids[index],
        boxes=candidates.boxes[index],
        flipped=candidates.flipped[index],
        classes=classes,
        strides=candidates.strides,
    )


def _large_enough(candidates: Candidates, label: int, config: DistillConfig) -> Tensor:
    """The candidates of a class that pass min_box; with relax_filters the largest of the others fill up."""
    rows = torch.where(candidates.labels == label)[0]
    side = (candidates.boxes[rows, 2:] - candidates.boxes[rows, :2]).amin(1)
    large = rows[side > config.min_box]
    if config.relax_filters and len(large) < config.prototypes:
        order = side.argsort(descending=True, stable=True)[: config.prototypes]
        return rows[order].sort().values
    return large


def _prototype_count(rows: Tensor, config: DistillConfig) -> int:
    if config.repeat_picks:
        return config.prototypes if len(rows) else 0
    return min(len(rows), config.prototypes)


def _pursue(candidates: Candidates, members: list[Tensor], config: DistillConfig) -> list[Tensor]:
    """Matching pursuit of every class and level as one padded batch; per class the picked rows [L,M]."""
    spaces = [F.normalize(space, dim=-1) for space in (candidates.student, candidates.teacher)]
    levels = len(candidates.strides)
    padded = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
    dense = torch.zeros(len(members), levels, padded.shape[1], dtype=torch.bool)
    for label, rows in enumerate(members):
        for level in range(levels if len(rows) else 0):
            dense[label, level, : len(rows)] = dense_instances(spaces[0][level, rows], spaces[1][level, rows], config)
    problem_rows = padded.repeat_interleave(levels, dim=0)
    level = torch.arange(levels).repeat(len(members))[:, None]
    picks = ops.matching_pursuit(
        spaces[0][level, problem_rows],
        spaces[1][level, problem_rows],
        torch.tensor([len(rows) for rows in members]).repeat_interleave(levels),
        picks=config.prototypes,
        alpha=config.alpha,
        repeat=config.repeat_picks,
        candidates=dense.flatten(0, 1),
    )
    rows = problem_rows.gather(1, picks.clamp(min=0))
    return list(rows.unflatten(0, (-1, levels)))
