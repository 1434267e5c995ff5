"""``python -m gkd_fast.evaluate``: AP of a trained detector on a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gkd_fast.cli.command import option, parse, run_command
from gkd_fast.config import Config, DataConfig, from_dict, replace
from gkd_fast.config_checks import validate
from gkd_fast.errors import InputError
from gkd_fast.runs.detector_file import load_detector
from gkd_fast.runs.job import evaluate_detector, prepare_split
from gkd_fast.training.precision import resolve_device

_DESCRIPTION = """Evaluate a trained detector: COCO figures, and for VOC data the mAP of both rules. The data
default to those that the detector was trained with."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation of one checkpoint."""

    checkpoint: Path
    """Checkpoint to evaluate: model.pt of a run's teacher, student or distilled folder."""
    batch_size: int = 8
    """Images at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto: the GPU where one is there."""
    json: Path | None = None
    """File to which the figures are written, too."""
    data: DataConfig = field(default_factory=DataConfig)


def main(arguments: Sequence[str]) -> None:
    """Parse, evaluate, print one line a figure."""
    path = option(arguments, "checkpoint")
    if path is None and not {"-h", "--help"} & set(arguments):
        raise InputError("--checkpoint: expected a detector's file, got nothing; --help shows all options")
    trained = from_dict(load_detector(Path(path)).config) if path else Config()
    start = EvaluateConfig(checkpoint=Path(path or "model.pt"), data=trained.data)
    options = parse(EvaluateConfig, arguments, "gkd_fast.evaluate", _DESCRIPTION, start)

    checkpoint = load_detector(options.checkpoint)
    config = replace(Config(data=options.data), "optim", batch_size=options.batch_size)
    config = replace(config, "run", device=options.device)
    validate(config)
    device = resolve_device(options.device)
    model = checkpoint.build().to(device)
    dataset = prepare_split(config, "val", classes=checkpoint.classes)
    result = evaluate_detector(config, dataset, model, device)
    per_class = result.pop("per_class")
    for name, value in [*result.items(), *((f"AP of {name}", value) for name, value in per_class.items())]:
        print(f"{name:<24} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps({**result, "per_class": per_class}, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
