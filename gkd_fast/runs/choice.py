"""Settings for somebody's own data: chosen from its images and boxes and from the device, and said."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision

from gkd_fast import parallel
from gkd_fast.config import Config
from gkd_fast.data import AnnotatedImages
from gkd_fast.data.settings import DataConfig
from gkd_fast.detectors import specs
from gkd_fast.detectors.anchor_fit import ANCHOR_SIZES, unmatched_by_size
from gkd_fast.options import changed
from gkd_fast.recipes import LARGE_MODEL

# Eight cells of the finest map, as in the published detectors, are the most: an anchor sees about so far.
_ANCHORS = tuple(size for size in ANCHOR_SIZES if size <= 32)
# Of anchor sizes whose shares of unmatched boxes differ by less, the largest: on large maps there are fewer of it.
_ALIKE = 0.005


@dataclass(frozen=True)
class Device:
    """What is there to compute with. memory: of the GPU in GiB, 0 without one; cores, and main memory in GiB."""

    memory: float
    cores: int
    main_memory: float

    @classmethod
    def found(cls, device: torch.device) -> Device:
        """What this machine has."""
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else 0.0
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else 8.0
        return cls(memory, parallel.processor_cores(), pages)

    @property
    def has_gpu(self) -> bool:
        """Whether there is a GPU to train on."""
        return self.memory > 0


@dataclass(frozen=True)
class Statistics:
    """Images and boxes in figures.

    short: median of the images' short sides, pixels. aspect: long by short side, its 95th percentile. small: side of a
    square as large as a box, by its image's short side, the 10th percentile over all boxes, each class with the same
    weight, so that a class of small objects counts however rare it is. images: number. shapes: of each class the width
    and height of its boxes [B,2] by their image's short side.
    """

    images: int
    short: float
    aspect: float
    small: float
    shapes: list[np.ndarray]

    @classmethod
    def of(cls, dataset: AnnotatedImages) -> Statistics:
        """The figures of a data set's trainable boxes."""
        sizes = np.array([record.size for record in dataset.records], dtype=float)
        extent = [
            (record.boxes[:, 2:] - record.boxes[:, :2])[~record.ignored] / min(record.size)
            for record in dataset.records
        ]
        shapes, labels = np.concatenate(extent), np.concatenate([r.labels[~r.ignored] for r in dataset.records])
        sides = np.sqrt(shapes.prod(1))
        order = np.argsort(sides)
        reached = np.cumsum((1 / np.bincount(labels)[labels])[order])
        return cls(
            images=len(sizes),
            short=float(np.median(sizes.min(1))),
            aspect=float(np.quantile(sizes.max(1) / sizes.min(1), 0.95)),
            small=float(sides[order][np.searchsorted(reached, 0.1 * reached[-1])]),
            shapes=[shapes[labels == label] for label in np.unique(labels)],
        )


@dataclass(frozen=True)
class Choice:
    """Options by name, and why they are what they are."""

    values: dict[str, Any]
    reason: str


def choose(
    config: Config, dataset: AnnotatedImages, device: Device, given: Collection[str]
) -> tuple[Config, list[Choice]]:
    """Settings for a data set; options that were given stay.

    Args:
        config: as the command line says.
        dataset: training images.
        device: to train on.
        given: names of the options that the command line names.

    Returns:
        The settings, and what was chosen.
    """
    figures = Statistics.of(dataset)
    choices = [_networks(device, given)]
    for step in (_size, _anchors, _length, _cache):
        config = changed(config, choices[-1].values)
        own = step(config, figures, device, given)
        choices.append(Choice({name: value for name, value in own.values.items() if name not in given}, own.reason))
    config = changed(config, choices[-1].values)
    return config, [choice for choice in choices if choice.values]


def lines(choices: list[Choice]) -> list[str]:
    """What was chosen, as options, and why."""
    head = "chosen from the data and the device (every one is an option):"
    return [head, *(f"  {as_options(choice.values)}: {choice.reason}" for choice in choices)]


def as_options(values: dict[str, Any]) -> str:
    """As a command line has them."""
    return " ".join(_as_option(name.replace("_", "-"), value) for name, value in values.items())


def _as_option(flag: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{'' if value else 'no-'}{flag}"
    return f"--{flag} {value if value != '' else chr(34) * 2}"


def _networks(device: Device, given: Collection[str]) -> Choice:
    """Large networks from ImageNet weights on a GPU, MobileNetV2 on a CPU; a network that is named is left alone."""
    if device.memory >= 20:
        values, reason = dict(LARGE_MODEL), f"a GPU of {device.memory:.0f} GiB takes the large networks"
    elif device.has_gpu:
        values = {**LARGE_MODEL, "teacher": "resnet50", "student": "resnet18", "student_weights": "IMAGENET1K_V1"}
        reason = f"a GPU of {device.memory:.0f} GiB"
    else:
        values = {
            **{"teacher": "mobilenet_v2", "teacher_weights": "IMAGENET1K_V1", "teacher_channels": 64},
            **{"teacher_head": 512, "student_width": 0.35, "student_channels": 64, "student_head": 512},
            **{"rois": 128, "pyramid_norm": False},
        }
        reason = "small networks for a CPU"
    left = {"anchor_size", *given}
    for role in ("teacher", "student"):
        named = {role, f"{role}_width", f"{role}_weights", f"{role}_checkpoint"} & set(given)
        weights = values.get(f"{role}_weights")
        if named:
            left |= {name for name in values if name == role or name.startswith(f"{role}_")}
        elif weights and not weights_at_hand(values[role], weights):
            values[f"{role}_weights"] = ""
            values["pyramid_norm"] = True
            values["freeze_norm"] = False
            reason += f"; {weights} of {values[role]} could not be had, so the {role} starts from random weights"
    return Choice({k: v for k, v in values.items() if k not in left}, reason)


def weights_at_hand(backbone: str, name: str) -> bool:
    """Whether torchvision's weights are on this machine, or can be downloaded now."""
    weights = torchvision.models.get_model_weights(backbone)[name]
    try:
        weights.get_state_dict(progress=False, check_hash=True)
    except Exception:  # of the network: half a dozen types
        return False
    return True


def _size(config: Config, figures: Statistics, device: Device, given: Collection[str]) -> Choice:
    """A tenth of the boxes may be smaller than 16 pixels, within what the device does in the time that there is."""
    least, usual, most = (480, 640, 800) if device.has_gpu else (160, 240, 320)
    wanted = math.ceil(16 / figures.small / 16) * 16
    short = int(min(max(wanted, usual), most, max(2 * figures.short // 16 * 16, 16)))
    short = max(short, min(least, int(figures.short)))
    if "short_side" in given:
        short = config.data.short_side
    elif "long_side" in given:
        short = min(short, config.data.long_side)
    long = math.ceil(short * min(figures.aspect, 2.5) / 32) * 32
    reason = (
        f"images of {figures.short:.0f} pixels on their short side (median), up to {figures.aspect:.2f} times as long; "
        f"a tenth of the boxes, classes weighed alike, are smaller than {figures.small * short:.0f} pixels then"
    )
    return Choice({"short_side": short, "long_side": max(long, short)}, reason)


def _anchors(config: Config, figures: Statistics, device: Device, given: Collection[str]) -> Choice:
    """The anchors that fit the boxes best, the mean over the classes."""
    spec = specs(config.model)[1]
    shares = dict.fromkeys(_ANCHORS, 0.0)
    for own in figures.shapes:
        found = unmatched_by_size(own * config.data.short_side, spec, _ANCHORS)
        shares = {size: share + found[size] / len(figures.shapes) for size, share in shares.items()}
    best = max(size for size, share in shares.items() if share <= min(shares.values()) + _ALIKE)
    reason = f"no anchor fits {100 * shares[best]:.1f} % of the boxes, the mean over the classes"
    return Choice({"anchor_size": best}, reason)


def _length(config: Config, figures: Statistics, device: Device, given: Collection[str]) -> Choice:
    """Steps by the device, on a CPU fewer of larger images; epochs as many as they make of these images."""
    batch = (16 if device.memory >= 40 else 8 if device.memory >= 20 else 4) if device.has_gpu else 4
    batch = config.optim.batch_size if "batch_size" in given else min(batch, figures.images)
    steps = 6000 if device.has_gpu else 600 * min(1, 240 * 320 / _pixels(config.data, figures))
    epochs = min(max(round(steps * batch / figures.images), 12 if device.has_gpu else 1), 200)
    own = config.optim.epochs if "epochs" in given else epochs
    made = own * max(figures.images // batch, 1)
    values: dict[str, Any] = {
        "batch_size": batch,
        "epochs": own,
        "teacher_epochs": epochs,
        "warmup_steps": min(500, made // 6),
    }
    if device.has_gpu:
        values |= {"optimizer": "sgd", "lr": 0.01 * batch / 8, "teacher_lr": 0.01 * batch / 8}
    else:
        values |= {"teacher_lr": 1e-3}
    what = "a GPU" if device.has_gpu else f"{device.cores} CPU cores"
    return Choice(values, f"{made} steps of the student, for {figures.images} images on {what}")


def _cache(config: Config, figures: Statistics, device: Device, given: Collection[str]) -> Choice:
    data = config.data
    need = figures.images * 3 * _pixels(data, figures) / 2**30
    fits = need < device.main_memory / 4
    workers = min(8, max(device.cores - 1, 0)) if device.has_gpu else 0
    reason = f"the resized images take {need:.2f} GiB of {device.main_memory:.0f} GiB"
    return Choice({"cache": fits and not workers, "workers": workers}, reason)


def _pixels(data: DataConfig, figures: Statistics) -> float:
    """Of a resized image."""
    return data.short_side * min(data.long_side, data.short_side * figures.aspect)
