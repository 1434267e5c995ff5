"""Named settings, and where the settings of a command start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gkd_fast.config import PLAIN, SCENES_DISTILL, SCENES_OPTIM, Config
from gkd_fast.errors import InputError
from gkd_fast.methods.gkd.settings import PUBLISHED
from gkd_fast.options import changed
from gkd_fast.recipes import LARGE_MODEL, RECIPES, Preset

PRESETS: dict[str, Preset] = {
    "scenes": SCENES_DISTILL | SCENES_OPTIM,
    "voc": {
        **{"data": "voc", "train_split": "trainval", "val_split": "test", "short_side": 600, "long_side": 1000},
        **{"cache": False, "workers": 2},
        **LARGE_MODEL,
        **{"optimizer": "sgd", "lr": 0.01, "teacher_lr": 0.01, "batch_size": 8, "epochs": 12, "teacher_epochs": 12},
        **{"warmup_steps": 500, "schedule": "multistep", "milestones": (8, 11)},
    },
    "coco": {
        **{"data": "coco", "train_split": "train2017", "val_split": "val2017", "short_side": 800, "long_side": 1333},
        **{"cache": False, "workers": 4},
        **LARGE_MODEL,
        **{"optimizer": "sgd", "lr": 0.02, "teacher_lr": 0.02, "batch_size": 16, "epochs": 24, "teacher_epochs": 24},
        **{"warmup_steps": 500, "schedule": "multistep"},
    },
    "bccd": {
        **{"data": "voc", "train_split": "trainval", "val_split": "test", "short_side": 240},
        **{"teacher": "mobilenet_v2", "teacher_weights": "IMAGENET1K_V1", "student_channels": 64},
        **{"student_width": 0.35, "teacher_head": 512, "student_head": 512, "rois": 128},
        **{"pyramid_norm": False, "anchor_size": 16},
        **{"epochs": 4, "teacher_epochs": 4, "batch_size": 4, "lr": 2e-3, "teacher_lr": 1e-3},
    },
    "reference": PUBLISHED,
    **RECIPES,
}


def from_presets(names: str) -> Config:
    """The settings of comma-separated presets, each on top of the ones before it.

    Raises:
        InputError: for a name that is no preset.
    """
    config = PLAIN
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in PRESETS:
            raise InputError(f"--preset: expected one of {', '.join(PRESETS)}; got {name!r}")
        config = changed(config, PRESETS[name])
    return dataclasses.replace(config, preset=names)


def starting_point(first: Mapping[str, Any], stored: Config | None = None) -> Config:
    """The settings that single options then change.

    Nothing is preset for somebody's own images, which a folder or a file names; a kind of data alone has a preset of
    its name.

    Args:
        first: of the options preset, which wins over all else, data, data_root and train_annotations the values, None
            where they are not given.
        stored: settings of the run that is gone on with.
    """
    if first["preset"] is not None:
        return from_presets(first["preset"])
    if stored is not None:
        return stored
    data = first["data"]
    if first["data_root"] or first["train_annotations"] or data == "objects":
        return from_presets("scenes" if data == "scenes" else "")
    kind = "scenes" if data in (None, "auto") else data
    return from_presets(kind if kind in PRESETS else "")
