"""The prototype bank: common basis vectors of the teacher's and the student's feature space."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_fast.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PrototypeBank:
    """Prototypes of L levels with their provenance; prototypes are grouped by class.

    Attributes:
        student: float32 [L,P,C_S], un-normalised embeddings in the student's space.
        teacher: float32 [L,P,C_T], of the same instances in the teacher's space.
        class_offsets: int64 [K+1]; class c owns the prototypes offsets[c]:offsets[c+1], on every level.
        most: no class has more prototypes than this.
        image_ids: int64 [L,P], the images that the prototypes were seen in.
        boxes: float32 [L,P,4], their boxes x1 y1 x2 y2, in pixels of the resized image.
        flipped: bool [L,P], whether the image was mirrored when the box was seen; None: none was.
        classes: the K class names.
        strides: the L strides in pixels.
    """

    student: Tensor
    teacher: Tensor
    class_offsets: Tensor
    most: int
    image_ids: Tensor
    boxes: Tensor
    classes: tuple[str, ...]
    strides: tuple[float, ...]
    flipped: Tensor | None = None

    def to(self, device: torch.device) -> PrototypeBank:
        """The bank with its tensors on a device."""
        moved: dict[str, Any] = {
            item.name: value.to(device) if isinstance(value := getattr(self, item.name), Tensor) else value
            for item in fields(self)
        }
        return PrototypeBank(**moved)

    def save(self, path: Path) -> None:
        """Write the bank to one file."""
        torch.save({item.name: getattr(self, item.name) for item in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> PrototypeBank:
        """Read a bank.

        Raises:
            InputError: if the file is missing or holds no bank.
        """
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises half a dozen types for a damaged file
            raise InputError(f"{path}: expected a prototype bank; {error}") from error
