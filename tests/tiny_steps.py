"""A training step on tiny networks and drawn scenes."""

from __future__ import annotations

from typing import Any

import torch
from tiny_runs import TINY_MODEL

from gkd_fast.config import PLAIN, Config, replace
from gkd_fast.data import Scenes
from gkd_fast.data.loader import build_loader
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import adapt, build_detector, specs
from gkd_fast.options import changed
from gkd_fast.training.distilling import build_distiller, freeze_teacher, passed_batches
from gkd_fast.training.step import Batch, TrainStep

CPU = torch.device("cpu")


def make_config(detector: str = "faster_rcnn", **sections: dict[str, Any]) -> Config:
    config = changed(PLAIN, {"detector": detector, **TINY_MODEL})
    for section, values in sections.items():
        config = replace(config, section, **values)
    return config


def make_data(count: int = 8) -> PreparedDataset:
    return PreparedDataset(Scenes(count, size=(96, 96)), short_side=96, long_side=96, flip=0.5, cache=True)


def make_batches(data: PreparedDataset, size: int = 4) -> list[Batch]:
    return list(build_loader(data, batch_size=size, shuffle=True, seed=0, workers=0))


def make_step(config: Config, *, distilled: bool = True, device: torch.device = CPU) -> tuple[TrainStep, list[Batch]]:
    """A step with prototypes, and two batches."""
    torch.manual_seed(0)
    data = make_data()
    teacher_spec, student_spec = specs(config.model)
    student = adapt(build_detector(student_spec, len(data.classes)).to(device))
    distiller = None
    if distilled:
        teacher = adapt(build_detector(teacher_spec, len(data.classes)))
        freeze_teacher(teacher.model, device)
        distiller = build_distiller(teacher, student, data.classes, config.distill)
    batches = make_batches(data)
    most = max(data.boxes_per_image(range(len(data))).values())
    step = TrainStep(student, config, 1e-3, device, distiller, most=most)
    if distiller:
        distiller.refresh(passed_batches(student, batches, device))
    student.model.train()
    return step, batches


def weights(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in step.modules.state_dict().items()}
