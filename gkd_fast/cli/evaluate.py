"""``gkd-fast evaluate``: AP of a trained detector on a data set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from gkd_fast.cli.parsing import given_options, parse
from gkd_fast.config import Config, from_dict, replace, validate
from gkd_fast.data.settings import DataConfig
from gkd_fast.detectors.settings import check_checkpoint
from gkd_fast.errors import InputError
from gkd_fast.options import MAIN
from gkd_fast.ranges import POSITIVE

if TYPE_CHECKING:
    from gkd_fast.runs.detector_file import DetectorCheckpoint

_DESCRIPTION = """Evaluate a trained detector: COCO figures, and for VOC data the mAP of both rules. The data
default to those that the detector was trained with."""

_SPLITS = ("data", "data_root", "train_split", "val_split", "val_fraction")
_PLACES = (*_SPLITS, "train_annotations", "train_images", "val_annotations", "val_images")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation of one checkpoint."""

    checkpoint: Annotated[Path | None, MAIN] = None
    """Checkpoint to evaluate: model.pt of a run's teacher, student or distilled folder."""
    batch_size: Annotated[int, POSITIVE, MAIN] = 8
    """Images at once."""
    device: Annotated[Literal["auto", "cpu", "cuda"], MAIN] = "auto"
    """Device; auto: the GPU where one is there."""
    json: Annotated[Path | None, MAIN] = None
    """File to which the figures are written, too."""
    data: DataConfig = field(default_factory=DataConfig)


def main(arguments: Sequence[str]) -> None:
    """Parse, evaluate, print one line a figure."""
    checked = parse(arguments, "evaluate", _DESCRIPTION, EvaluateConfig())
    if checked.checkpoint is None:
        raise InputError("--checkpoint: expected a detector's file, got nothing; --help shows the options")
    check_checkpoint(checked.checkpoint)
    from gkd_fast.runs.detector_file import load_detector

    checkpoint = load_detector(checked.checkpoint)
    trained = from_dict(checkpoint.config).data
    options = parse(arguments, "evaluate", _DESCRIPTION, EvaluateConfig(data=trained))
    given = given_options(arguments, DataConfig)
    data = options.data
    if given & {"data_root", "val_annotations"}:
        # Other images than those of the training: what says where those lay says nothing of these.
        forgotten = {name: getattr(DataConfig(), name) for name in _PLACES if name not in given}
        data = dataclasses.replace(data, **forgotten)
    config = replace(Config(data=data), "optim", batch_size=options.batch_size)
    result = _evaluated(checkpoint, replace(config, "run", device=options.device))
    per_class = result.pop("per_class")
    for name, value in [*result.items(), *((f"AP of {name}", value) for name, value in per_class.items())]:
        print(f"{name:<24} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps({**result, "per_class": per_class}, indent=2) + "\n")


def _evaluated(checkpoint: DetectorCheckpoint, config: Config) -> dict[str, Any]:
    from gkd_fast.runs.data import prepared, read_val
    from gkd_fast.runs.job import evaluate_detector
    from gkd_fast.runs.settle import with_format
    from gkd_fast.training.precision import resolve_device

    config = with_format(config)
    validate(config)
    device = resolve_device(config.run.device)
    model = checkpoint.build().to(device)
    dataset = prepared(config, read_val(config, checkpoint.classes))
    return evaluate_detector(config, dataset, model, device)
