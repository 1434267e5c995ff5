"""Detections of a detector on a data set, in original image pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from gkd_fast import parallel
from gkd_fast.data.loader import build_loader
from gkd_fast.data.pipeline import PreparedDataset


@torch.no_grad()
def detect(
    model: nn.Module,
    dataset: PreparedDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda images: None,
) -> list[dict[str, Any]]:
    """Run a detector over a data set.

    Args:
        model: the detector, for uint8 images that are resized already; in evaluation mode during the call.
        dataset: prepared images, not augmented; where several processes run, each takes its share.
        batch_size: images at once.
        workers: loader processes.
        device: of the model.
        progress: called with the number of images of every finished batch.

    Returns:
        One dict an image, on the CPU: image_id, boxes [n,4] in original pixels, scores [n], labels [n]. The main
        process gets those of all images, the others an empty list.
    """
    training = model.training
    model.eval()
    detections = []
    own = parallel.own_share(range(len(dataset)))
    loader = build_loader(dataset, batch_size=batch_size, shuffle=False, seed=0, workers=workers, indices=own)
    for images, targets in loader:
        found = _on_cpu(model([image.to(device, non_blocking=True) for image in images]))
        for image, target, boxes, scores, labels in zip(images, targets, *found, strict=True):
            height, width = target["original_size"]
            scale = torch.tensor([width / image.shape[-1], height / image.shape[-2]]).repeat(2)
            # Clones, for a part of a tensor is sent to another process as all of it.
            values = {"boxes": boxes * scale, "scores": scores.clone(), "labels": labels.clone()}
            detections.append({"image_id": target["image_id"], **values})
        progress(len(images))
    model.train(training)
    parts = parallel.gather(detections[: len(range(parallel.rank(), len(dataset), parallel.world_size()))])
    return [found for turn in zip_longest(*parts) for found in turn if found]


def _on_cpu(outputs: Sequence[dict[str, Tensor]]) -> list[tuple[Tensor, ...]]:
    """Boxes, scores and labels of every image, parts of one tensor each; the host waits three times a batch."""
    counts = [len(output["scores"]) for output in outputs]
    boxes, scores, labels = (torch.cat([output[name] for output in outputs]) for name in ("boxes", "scores", "labels"))
    return [joined.cpu().split(counts) for joined in (boxes.float(), scores.float(), labels)]
