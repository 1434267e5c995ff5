"""Checkpoints of finished detectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gkd_fast import parallel
from gkd_fast.detectors import DetectorSpec, build_detector
from gkd_fast.detectors.build import select_outputs
from gkd_fast.detectors.settings import check_checkpoint
from gkd_fast.errors import InputError
from gkd_fast.files import replacing
from gkd_fast.runs.shared_file import read_shared
from gkd_fast.training.distributed import whole_state

FORMAT = 1


@dataclass(frozen=True)
class DetectorCheckpoint:
    """A trained detector: a plain torchvision state dict and what is needed to build its network.

    Attributes:
        ap: COCO AP that the detector is known to reach on its validation images, as a fraction.
    """

    spec: DetectorSpec
    classes: tuple[str, ...]
    model: dict[str, torch.Tensor]
    config: dict[str, Any]
    origin: str
    ap: float | None = None

    def build(self) -> nn.Module:
        """The torchvision detector with the trained weights.

        Raises:
            InputError: if the weights are of another architecture than the specification.
        """
        detector = build_detector(self.spec, len(self.classes))
        load_weights(detector, self.model, self.origin)
        return detector

    def reduced(self, classes: tuple[str, ...]) -> DetectorCheckpoint:
        """The same detector with the outputs of some of its classes, in the order given.

        Raises:
            InputError: for a class that it does not know.
        """
        if classes == self.classes:
            return self
        if unknown := [name for name in classes if name not in self.classes]:
            known = ", ".join(self.classes)
            raise InputError(
                f"{self.origin}: expected a detector of the classes {', '.join(classes)}; it has {known} and lacks "
                f"{', '.join(unknown)} (--classes names those to detect)"
            )
        rows = torch.tensor([0] + [self.classes.index(name) + 1 for name in classes])
        model = select_outputs(self.model, rows, len(self.classes) + 1)
        return replace(self, classes=classes, model=model)


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load a state dict strictly.

    Raises:
        InputError: one line, with the first differences.
    """
    own = model.state_dict()
    differences = [f"lacks {name}" for name in own if name not in state]
    differences += [f"has the unknown {name}" for name in state if name not in own]
    differences += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if differences:
        more = f" (and {len(differences) - 2} more)" if len(differences) > 2 else ""
        raise InputError(f"{origin}: another architecture: {'; '.join(differences[:2])}{more}")
    model.load_state_dict(state, strict=True)


def save_detector(
    path: Path,
    model: nn.Module,
    spec: DetectorSpec,
    classes: tuple[str, ...],
    config: dict[str, Any],
    ap: float | None = None,
) -> None:
    """Write a finished detector."""
    # Copies: what training keeps in one piece lies in the file one by one.
    state = {name: value.detach().cpu().clone() for name, value in whole_state(model).items()}
    if not parallel.is_main():
        return
    content = {
        "format": FORMAT,
        "spec": spec.to_dict(),
        "classes": list(classes),
        "model": state,
        "config": config,
        "ap": ap,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_detector(path: Path) -> DetectorCheckpoint:
    """Read a finished detector.

    Raises:
        InputError: if the file is missing, damaged, or no checkpoint of this program.
    """
    content = _load(path)
    try:
        return DetectorCheckpoint(
            spec=DetectorSpec(**content["spec"]),
            classes=tuple(content["classes"]),
            model=content["model"],
            config=content["config"],
            origin=str(path),
            ap=content.get("ap"),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a detector checkpoint of gkd_fast; {error} does not fit") from error


def _load(path: Path) -> dict[str, Any]:
    check_checkpoint(path)
    try:
        if path.suffix == ".safetensors":
            return read_shared(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        raise InputError(f"{path}: expected a readable checkpoint; {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a checkpoint of gkd_fast, got a {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
