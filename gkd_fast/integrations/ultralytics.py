"""Distillation in Ultralytics' own trainer, for YOLO 11 and 26.

    from ultralytics import YOLO
    from gkd_fast.integrations.ultralytics import distil

    YOLO("yolo11n.yaml").train(data="cells.yaml", epochs=100, trainer=distil("runs/teacher/weights/best.pt"))

Ultralytics is licensed under the AGPL-3.0. It is imported from the user's environment; this package contains no part
of it and does not depend on it. What is trained with it, and the weights, are subject to its licence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from gkd_fast.distiller import Distiller
from gkd_fast.integrations import state
from gkd_fast.integrations.foreign import Teacher
from gkd_fast.methods import Settings

try:
    from ultralytics.engine.model import Model
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.nn.modules.head import Detect
    from ultralytics.nn.tasks import load_checkpoint
    from ultralytics.utils.torch_utils import unwrap_model
except ImportError as error:
    raise ImportError(
        "gkd_fast.integrations.ultralytics: expected ultralytics >= 8.4.190 (AGPL-3.0), which is no dependency of "
        f"gkd_fast: pip install ultralytics ({error})"
    ) from error

_LETTERBOX = 114 / 255  # of the border around Ultralytics' images


def distil(
    teacher: str | Path | nn.Module, *, method: str = "gkd", settings: Settings | None = None, **options: Any
) -> type[DistillationTrainer]:
    """A trainer class for ``YOLO(...).train(trainer=...)``.

    Args:
        teacher: a checkpoint that Ultralytics wrote, or a model; of the same classes as the data.
        method: what is distilled by, see `gkd_fast.Distiller`.
        settings: of the methods.
        **options: others of `gkd_fast.Distiller`, and single settings by name, such as ``min_box=8``.
    """
    given = {"method": method, "settings": settings, **options}
    return type("Distilled", (DistillationTrainer,), {"teacher": teacher, "options": given})


def pyramid_layers(network: Any) -> list[str]:
    """Names of the modules whose outputs the detection head takes in, from the finest on.

    Args:
        network: a `DetectionModel`.

    Raises:
        ValueError: if it has no detection head.
    """
    heads = [module for module in network.model if isinstance(module, Detect)]
    if not heads:
        raise ValueError(f"network: expected a detection head, {type(network).__name__} has none")
    return [f"model.{index}" for index in heads[-1].f]


def as_teacher(teacher: str | Path | nn.Module) -> Teacher:
    """A YOLO as the teacher of a torchvision detector, see `gkd_fast.integrations.torchvision.Distiller`.

    Args:
        teacher: a checkpoint that Ultralytics wrote, or a model.

    Raises:
        ValueError: if it has no detection head, or only the fused one of a YOLO 26, which gives no class but the best.
    """
    network: Any = _network(teacher).float().eval()
    layers = pyramid_layers(network)
    if network.model[-1].cv2 is None:
        raise ValueError("teacher: expected a head that is not fused, whose classes can be asked")
    names = tuple(network.names.values()) if isinstance(network.names, dict) else tuple(network.names)
    return Teacher(network, layers, names, _predict, exclusive=False, padding=_LETTERBOX)


def _predict(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [N,Q,4] and class logits [N,Q,K] of every cell."""
    head = network.model[-1]
    ending, head.end2end = head._end2end if hasattr(head, "_end2end") else False, False
    try:
        found = network(images)[0].transpose(1, 2)
    finally:
        head.end2end = ending
    return box_convert(found[..., :4], "cxcywh", "xyxy"), torch.logit(found[..., 4:], eps=1e-6)


class DistillationTrainer(DetectionTrainer):
    """Ultralytics' trainer with the distillation terms in the student's loss; made by `distil`.

    EMA, validation and checkpoints see the plain student. ``distiller.pt`` beside ``last.pt`` is for resuming.

    Attributes:
        distiller: from the start of the training on.
    """

    teacher: str | Path | nn.Module | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - `distil` gives each subclass its own
    distiller: Distiller

    def build_optimizer(self, model: nn.Module, *args: Any, **options: Any) -> torch.optim.Optimizer:
        """Ultralytics' optimizer, which also trains the distiller's adapters."""
        optimizer = super().build_optimizer(model, *args, **options)
        self.distiller = self._new_distiller()
        adapters = list(self.distiller.parameters())
        if adapters:
            weights = [group for group in optimizer.param_groups if group["param_group"] == "weight"]
            like = min(weights, key=lambda group: group["lr"])
            optimizer.add_param_group({**like, "params": adapters})
        return optimizer

    def _new_distiller(self) -> Distiller:
        names = tuple(self.data["names"].values())
        teacher = _network(self.teacher).float().to(self.device)
        _check_classes(teacher, names)
        example = torch.zeros(1, self.data["channels"], self.args.imgsz, self.args.imgsz, device=self.device)
        layers = [pyramid_layers(network) for network in (unwrap_model(self.model), teacher)]
        return Distiller(teacher, self.model, names, *layers, boxes="cxcywh", example=example, **self.options)

    def _setup_train(self) -> None:
        super()._setup_train()
        student = unwrap_model(self.model)
        student.criterion = _Criterion(getattr(student, "criterion", None) or student.init_criterion(), self.distiller)

    def _do_train(self) -> None:
        try:
            super()._do_train()
        finally:
            if hasattr(self, "distiller"):
                self.distiller.remove()
                unwrap_model(self.model).criterion = None

    def _model_train(self) -> None:
        super()._model_train()  # called as an epoch begins
        if self.distiller.settings.attenuation:
            self.distiller.attenuation = 1 - self.epoch / self.epochs

    def save_model(self) -> bool:
        """Ultralytics' checkpoints, and the distiller's state beside them."""
        saved = super().save_model()
        state.save(self.distiller, self.wdir)
        return saved

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        super()._load_checkpoint_state(ckpt)
        state.load(self.distiller, self.wdir)


class _Criterion:
    """The student's criterion plus the distillation terms; copies and pickles of it are the plain criterion."""

    def __init__(self, plain: Any, distiller: Distiller) -> None:
        self.__dict__.update(plain=plain, distiller=distiller)

    def __call__(self, predictions: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        own, items = self.plain(predictions, batch)
        terms = self.distiller(batch["img"], batch["bboxes"], batch["cls"], batch["batch_idx"])
        # Ultralytics' losses are sums over the images of a process, and DDP's mean is multiplied by its processes.
        scaled = torch.stack(list(terms.values())) * len(batch["img"])
        return torch.cat([own.reshape(-1), scaled]), items | {name: term.detach() for name, term in terms.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["plain"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.plain, name, value)

    def __reduce__(self) -> Any:
        return copy.copy, (self.plain,)


def _network(teacher: str | Path | nn.Module | None) -> nn.Module:
    if isinstance(teacher, (str, Path)):
        return load_checkpoint(teacher)[0]
    network = teacher.model if isinstance(teacher, Model) else teacher
    if not isinstance(network, nn.Module):
        raise TypeError(f"teacher: expected a checkpoint or a model, got {type(network).__name__}; use distil(teacher)")
    return network


def _check_classes(teacher: Any, expected: Sequence[str]) -> None:
    found = tuple(teacher.names.values())
    if found != tuple(expected):
        raise ValueError(f"teacher: expected the data's classes {', '.join(expected)}, got {', '.join(found)}")
