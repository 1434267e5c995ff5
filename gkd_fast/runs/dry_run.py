"""``--dry-run``: both networks and two distillation steps on drawn images, and what a run would need."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from gkd_fast.config import Config, replace
from gkd_fast.data import Scenes
from gkd_fast.detectors import adapt, build_detector, specs
from gkd_fast.distiller import Distiller
from gkd_fast.training.distilling import build_distiller, freeze_teacher, passed_batches
from gkd_fast.training.precision import resolve_device
from gkd_fast.training.step import Batch, TrainStep

IMAGES = {"coco": 118_287, "voc": 16_551}  # train2017; 2007 and 2012 trainval
_VOC_CLASSES, _STEPS, _BOXES = 20, 2, 6


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What two steps of one image showed.

    Attributes:
        teacher, student: parameters, the student's with the distillation methods' own.
        losses: of the last step.
        seconds: of the second step.
        flop: floating-point operations of one image's step that torch counts (convolutions, matrix products).
        saved: bytes that one image's step keeps for its backward pass.
        fixed: bytes of both networks, gradients and the optimiser's state.
    """

    teacher: int
    student: int
    losses: dict[str, float]
    seconds: float
    flop: int
    saved: int
    fixed: int


def dry_run(config: Config) -> DryRun:
    """Build teacher, student and distiller with random weights, no data and no download, and train two steps.

    Args:
        config: validated settings; one image of short_side x long_side pixels stands for a batch.

    Raises:
        InputError: for networks that cannot be built.
    """
    device = resolve_device(config.run.device)
    config = replace(config, "run", compile="off")
    classes = _classes(config)
    torch.manual_seed(config.run.seed)
    teacher, student = (build_detector(spec, len(classes)).to(device) for spec in specs(config.model))
    counts = [_parameters(network) for network in (teacher, student)]
    freeze_teacher(teacher, device)
    adapter = adapt(student.train())
    distiller = build_distiller(adapt(teacher), adapter, classes, config.distill)
    step = TrainStep(adapter, config, config.optim.lr, device, distiller)
    batches = [_batch(config, len(classes), seed) for seed in range(_STEPS)]
    if distiller.uses_prototypes:
        distiller.refresh(passed_batches(adapter, batches, device))
    return _measured(step, distiller, batches, counts)


def _measured(step: TrainStep, distiller: Distiller, batches: list[Batch], counts: list[int]) -> DryRun:
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        step(batches[0], 1.0)
    own = {parameter.untyped_storage().data_ptr() for parameter in step.trainable}
    started = time.perf_counter()
    losses = {name: float(value) for name, value in step(batches[1], 1.0).items()}
    seconds = time.perf_counter() - started
    state = [value for values in step.optimizer.state.values() for value in values.values()]
    kept = [*_tensors(distiller.teacher), *_tensors(step.modules)]
    kept += [parameter.grad for parameter in step.trainable if parameter.grad is not None]
    return DryRun(
        teacher=counts[0],
        student=counts[1] + _parameters(distiller),
        losses=losses,
        seconds=seconds,
        flop=counter.get_total_flops(),
        saved=sum(size for place, size in saved.items() if place not in own),
        fixed=sum(value.nbytes for value in [*kept, *state] if isinstance(value, Tensor)),
    )


def describe(config: Config, result: DryRun) -> str:
    """The figures as lines; everything that is not counted or measured is called an estimate."""
    data, optim, networks = config.data, config.optim, config.model
    memory = result.fixed + optim.batch_size * result.saved
    images = IMAGES.get(data.data, data.scenes_train)
    flop = result.flop * images * optim.epochs
    losses = ", ".join(f"{name} {value:.3g}" for name, value in result.losses.items())
    return "\n".join(
        (
            f"teacher {networks.teacher.backbone}: {result.teacher / 1e6:.2f} million parameters",
            f"student {networks.student.backbone}: {result.student / 1e6:.2f} million parameters, adapters included",
            f"2 steps of one drawn image of {data.short_side} x {data.long_side}, random weights: {losses}",
            f"second step: {result.seconds:.1f} s, {result.flop / 1e12:.2f} TFLOP (forward and backward, counted)",
            f"estimate: {memory / 2**30:.1f} GiB for steps of {optim.batch_size} images in float32, on one device: "
            f"{result.fixed / 2**30:.2f} GiB weights, gradients and optimiser, {result.saved / 2**30:.2f} GiB an image",
            f"estimate: {optim.epochs} epochs of {images} images at this device's speed: "
            f"{result.seconds * images * optim.epochs / 3600:,.0f} h; at 50 TFLOP/s sustained: "
            f"{flop / 50e12 / 3600:,.0f} h "
            "(distilled student alone, without teacher training, prototypes, evaluation)",
        )
    )


def _classes(config: Config) -> tuple[str, ...]:
    data = config.data
    if data.classes:
        return data.classes
    if data.data in ("auto", "scenes"):
        return Scenes.classes
    if data.data == "voc":
        return tuple(f"class {number}" for number in range(_VOC_CLASSES))
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in categories if name not in ("__background__", "N/A"))


def _batch(config: Config, classes: int, seed: int) -> Batch:
    """One drawn image with boxes of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = config.data.short_side, config.data.long_side
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    sides = torch.rand(_BOXES, 2, generator=generator) * 0.6 + 0.2
    corner = torch.rand(_BOXES, 2, generator=generator) * (1 - sides)
    boxes = torch.cat([corner, corner + sides], 1) * torch.tensor([width, height] * 2)
    target: dict[str, Any] = {
        "boxes": boxes,
        "labels": torch.randint(1, classes + 1, (_BOXES,), generator=generator),
        "image_id": seed,
        "original_size": (height, width),
        "flipped": False,
    }
    return [image], [target]


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
