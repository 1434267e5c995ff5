"""Prototype candidates from the training steps' own features, without a pass of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkd_fast import parallel
from gkd_fast.instances import Instances
from gkd_fast.methods.gkd.prototypes import Candidates

_UNKNOWN = -1  # the id of an image without one


class ClassRings:
    """The last instances of every class, embedded as the training steps saw them.

    A ring for each class keeps the candidates of rare classes. The rings lie on the device and are written without
    waiting for it. Of an instance that was seen several times, known by the id of its image and its place in it, the
    newest embedding is taken.

    Args:
        classes: their number.
        capacity: instances of a class that are kept.
    """

    def __init__(self, classes: int, capacity: int) -> None:
        self.classes, self.capacity = classes, capacity
        self.strides: tuple[float, ...] = ()
        self._tables: dict[str, Tensor] = {}  # [K*capacity+1,...]; the last row takes what does not fit
        self._counts = torch.zeros(classes, dtype=torch.int64)  # instances seen of each class
        self._steps = 0

    @torch.no_grad()
    def add(
        self,
        student: Tensor,
        teacher: Tensor,
        instances: Instances,
        strides: Sequence[float],
        *,
        images: int,
        image_ids: Tensor | None = None,
        flipped: Tensor | None = None,
    ) -> None:
        """Keep the instances of a step.

        Args:
            student, teacher: embeddings [L,B,C_S], [L,B,C_T].
            instances: B instances; those of class -1 are not kept.
            strides: of the levels, in pixels.
            images: N, of the batch.
            image_ids: int64 [N] on the device; None: unknown.
            flipped: bool [N] on the device, whether the images were mirrored; None: none was.
        """
        self._steps += 1
        self.strides = tuple(strides)
        labels, image = instances.labels, instances.image_index
        rows = {
            "student": student.detach().float().transpose(0, 1),
            "teacher": teacher.detach().float().transpose(0, 1),
            "boxes": instances.boxes,
            "labels": labels,
            "image_ids": torch.full_like(image, _UNKNOWN) if image_ids is None else image_ids[image],
            "places": _place_among(image, images)[0],
            "flipped": torch.zeros_like(image, dtype=torch.bool) if flipped is None else flipped[image],
            "steps": torch.full_like(labels, self._steps),
        }
        if not self._tables:
            self._counts = self._counts.to(labels.device)
            size = self.classes * self.capacity + 1
            self._tables = {name: row.new_zeros(size, *row.shape[1:]) for name, row in rows.items()}
        place, found = _place_among(labels, self.classes)
        ring = labels.clamp(min=0)
        slot = ring * self.capacity + (self._counts[ring] + place) % self.capacity
        # Of more instances than a ring holds only the last ones have places of their own.
        slot = slot.where((labels >= 0) & (place >= found[ring] - self.capacity), self.classes * self.capacity)
        for name, row in rows.items():
            self._tables[name].index_copy_(0, slot, row)
        self._counts += found

    @property
    def filled(self) -> bool:
        """Whether anything was seen; waits for the device."""
        return bool(self._counts.any())

    def rows(self) -> dict[str, Tensor]:
        """The instances that are kept, on the CPU; waits for the device."""
        kept = self._counts.clamp(max=self.capacity).cpu()
        index = torch.cat([c * self.capacity + torch.arange(int(n)) for c, n in enumerate(kept)] or [kept])
        return {name: table.cpu()[index] for name, table in self._tables.items()}

    def state_dict(self) -> dict[str, Any]:
        """What the rings hold, as tensors and numbers."""
        counts, strides = self._counts.cpu(), list(self.strides)
        return {"rows": self.rows(), "counts": counts, "steps": self._steps, "strides": strides}

    def gathered_state(self) -> dict[str, Any]:
        """The state of all processes' rings as one, on the main process; to be called by all."""
        own = self.state_dict()
        parts = parallel.gather(own)
        if len(parts) < 2:
            return own
        counts = torch.stack([part["counts"] for part in parts]).sum(0)
        return {**parts[0], "rows": merged_rows([part["rows"] for part in parts]), "counts": counts}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`, on a device; of rings of another capacity the newest instances are taken."""
        rows, counts = state["rows"], state["counts"].clone()
        self._steps, self.strides = state["steps"], tuple(state["strides"])
        self._tables = {
            name: row.new_zeros(self.classes * self.capacity + 1, *row.shape[1:], device=device)
            for name, row in rows.items()
        }
        for label in range(self.classes if rows else 0):
            own = torch.where(rows["labels"] == label)[0]
            if len(own) != min(self.capacity, int(counts[label])):
                own = own[rows["steps"][own].argsort(stable=True)][-self.capacity :]
                counts[label] = len(own)
            for name, row in rows.items():
                first = label * self.capacity
                self._tables[name][first : first + len(own)] = row[own].to(device)
        self._counts = counts.to(device)


def merged_rows(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of several rings, sorted by image and place, each instance of a known image once, its newest row."""
    parts = [part for part in parts if part]
    rows = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    if not rows:
        return rows
    order = rows["steps"].argsort(descending=True, stable=True)
    for key in ("places", "image_ids"):
        order = order[rows[key][order].argsort(stable=True)]
    rows = {name: row[order] for name, row in rows.items()}
    keys = torch.stack([rows["image_ids"], rows["places"]], 1)
    again = torch.zeros(len(keys), dtype=torch.bool)
    again[1:] = (keys[1:] == keys[:-1]).all(1) & (keys[1:, 0] != _UNKNOWN)
    return {name: row[~again] for name, row in rows.items()}


def candidates_from(parts: Sequence[dict[str, Tensor]], strides: tuple[float, ...]) -> Candidates:
    """The candidates in the rows of all processes' rings.

    Raises:
        ValueError: for rings that saw nothing.
    """
    rows = merged_rows(parts)
    if not rows:
        raise ValueError("prototypes: expected instances in the steps so far, got none")
    return Candidates(
        student=rows["student"].transpose(0, 1).contiguous(),
        teacher=rows["teacher"].transpose(0, 1).contiguous(),
        labels=rows["labels"],
        image_ids=rows["image_ids"],
        boxes=rows["boxes"],
        flipped=rows["flipped"],
        strides=strides,
    )


def _place_among(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """[B], how many rows before each are of the same group, any number for -1; and the rows of each group."""
    same = group[:, None] == torch.arange(groups, device=group.device)
    return (same.cumsum(0) - 1).gather(1, group.clamp(min=0)[:, None]).squeeze(1), same.sum(0)
