"""Checks of the settings that no single type can express."""

from __future__ import annotations

from collections.abc import Callable

from gkd_fast.config import Config
from gkd_fast.detectors.detection import OFFERED
from gkd_fast.errors import InputError
from gkd_fast.methods import Method, check_needs
from gkd_fast.ranges import check_ranges

_POSITIVE = {
    "data": "prefetch size_buckets short_side long_side scenes_train scenes_val",
    "model": "teacher_width student_width teacher_channels student_channels teacher_head student_head anchor_size "
    "proposals rois detections",
    "optim": "epochs teacher_epochs batch_size lr teacher_lr",
    "run": "bad_steps log_steps checkpoint_steps keep_checkpoints",
}
_NOT_NEGATIVE = {
    "data": "workers",
    "optim": "weight_decay warmup_steps clip_norm",
    "run": "seed grad_norm_steps",
}
_FRACTIONS = {"data": "flip"}


def validate(config: Config) -> None:
    """Check a configuration.

    Raises:
        InputError: naming the option, what was expected and what was given.
    """
    _each(config, _POSITIVE, lambda value: value > 0, "a positive number")
    _each(config, _NOT_NEGATIVE, lambda value: value >= 0, "zero or a positive number")
    _each(config, _FRACTIONS, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    data, model, run = config.data, config.model, config.run
    check_ranges(config.distill)
    offered = OFFERED["one_stage" if model.detector == "retinanet" else "two_stage"]
    check_needs(Method.parse(config.distill.method, "--method").names, offered, "--method")
    if model.teacher_ap is not None and not 0 < model.teacher_ap < 1:
        raise InputError(f"--teacher-ap: expected a fraction such as 0.398, got {model.teacher_ap}")
    if data.long_side < data.short_side:
        raise InputError(f"--long-side: expected at least --short-side {data.short_side}, got {data.long_side}")
    if data.data != "scenes" and data.data_root is None and not run.dry_run:
        raise InputError(f"--data-root: expected the folder of the {data.data} data set, got nothing")
    if run.amp_dtype == "fp16" and run.amp and run.device == "cpu":
        raise InputError("--amp-dtype: fp16 needs a GPU; expected bf16 on the CPU")


def _each(config: Config, names: dict[str, str], holds: Callable[[float], bool], expected: str) -> None:
    for section, fields in names.items():
        for name in fields.split():
            value = getattr(getattr(config, section), name)
            if not holds(value):
                raise InputError(f"--{name.replace('_', '-')}: expected {expected}, got {value}")
