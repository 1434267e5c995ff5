"""Prototype candidates from the training steps' own features, without a pass of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gkd_fast import ops, parallel
from gkd_fast.methods.gkd.prototypes import Candidates

_UNSEEN = -1


class CandidatePool:
    """The ground truth of the candidate images, embedded as the training steps last saw it.

    Every box has a row of its own, so that the order of the candidates is that of a pass over the images, and an
    image seen again replaces what was there: after an epoch the pool is that epoch's. Rows lie in the host's memory;
    from a GPU they are copied without waiting.

    Args:
        images: number of trainable boxes of each candidate image, by image id, in the order of the candidates.
        levels, student_channels, teacher_channels: of the pyramids.
        negative: treatment of coordinates below zero, see `gkd_fast.ops.box_mean_pool`.
    """

    def __init__(
        self, images: Mapping[int, int], levels: int, student_channels: int, teacher_channels: int, negative: str
    ) -> None:
        self.negative = negative
        self.strides: tuple[int, ...] = ()
        self._rows: dict[int, slice] = {}
        rows = 0
        for image, boxes in images.items():
            self._rows[image] = slice(rows, rows + boxes)
            rows += boxes
        self._image_ids = torch.tensor(list(images)).repeat_interleave(torch.tensor(list(images.values())))
        self._steps = 0
        self._seen = torch.full((rows,), _UNSEEN)  # the number of the step
        pinned = {"pin_memory": torch.cuda.is_available()}
        self._tables = {
            "student": torch.zeros(rows, levels, student_channels, **pinned),
            "teacher": torch.zeros(rows, levels, teacher_channels, **pinned),
            "boxes": torch.zeros(rows, 4, **pinned),
            "labels": torch.zeros(rows, dtype=torch.int64, **pinned),
            "flipped": torch.zeros(rows, dtype=torch.bool),
        }

    @torch.no_grad()
    def add(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        strides: Sequence[int],
    ) -> None:
        """Embed the candidates among a step's images.

        Args:
            student: L raw student maps [N,C_S,H_l,W_l] of the step.
            teacher: L teacher maps [N,C_T,H_l,W_l].
            targets: boxes, labels, image_id and flipped of each image, as the networks saw it.
            strides: of the levels, in pixels.
        """
        self._steps += 1
        self.strides = tuple(strides)
        chosen = [(number, target) for number, target in enumerate(targets) if target["image_id"] in self._rows]
        if not chosen:
            return
        boxes = torch.cat([target["boxes"] for _, target in chosen])
        labels = torch.cat([target["labels"] for _, target in chosen]) - 1
        index = torch.cat([torch.full_like(target["labels"], number) for number, target in chosen])
        pooled = [
            ops.box_mean_pool([level.float() for level in levels], boxes, index, strides, negative=self.negative)
            for levels in (student, teacher)
        ]
        columns = {"student": pooled[0].transpose(0, 1), "teacher": pooled[1].transpose(0, 1)}
        columns |= {"boxes": boxes, "labels": labels}
        first = 0
        for _, target in chosen:
            count = len(target["labels"])
            self._write(target, {name: column[first : first + count] for name, column in columns.items()})
            first += count

    def _write(self, target: Mapping[str, Any], columns: Mapping[str, Tensor]) -> None:
        rows = self._rows[target["image_id"]]
        rows = slice(rows.start, min(rows.stop, rows.start + len(target["labels"])))
        for name, column in columns.items():
            self._tables[name][rows].copy_(column[: rows.stop - rows.start], non_blocking=True)
        self._tables["flipped"][rows] = bool(target.get("flipped", False))
        self._seen[rows] = self._steps

    @property
    def filled(self) -> bool:
        """Whether any process has seen a candidate."""
        return bool(parallel.largest(int((self._seen != _UNSEEN).any())))

    def candidates(self) -> Candidates:
        """What was seen, the same on every process; to be called by all of them."""
        tables, seen = self._merged()
        rows = torch.where(seen != _UNSEEN)[0]
        found = {name: table[rows] for name, table in tables.items()}
        found |= {name: found[name].transpose(0, 1).contiguous() for name in ("student", "teacher")}
        return Candidates(**found, image_ids=self._image_ids[rows], strides=self.strides)

    def _merged(self) -> tuple[dict[str, Tensor], Tensor]:
        """The tables with every row from the process that wrote it last."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if parallel.world_size() == 1:
            return self._tables, self._seen
        newest = self._seen.clone()
        dist.all_reduce(newest, dist.ReduceOp.MAX)
        owner = torch.where(self._seen == newest, parallel.rank(), parallel.world_size())
        dist.all_reduce(owner, dist.ReduceOp.MIN)
        tables = {}
        for name, table in self._tables.items():
            merged = table.to(torch.uint8 if table.dtype == torch.bool else table.dtype, copy=True)
            merged[owner != parallel.rank()] = 0
            dist.all_reduce(merged)
            tables[name] = merged.to(table.dtype)
        return tables, newest

    def state_dict(self) -> dict[str, Any]:
        """What all processes have seen; to be called by all of them."""
        tables, seen = self._merged()
        return {"tables": tables, "seen": seen, "steps": self._steps, "strides": list(self.strides)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, table in self._tables.items():
            table.copy_(state["tables"][name])
        self._seen.copy_(state["seen"])
        self._steps, self.strides = state["steps"], tuple(state["strides"])
