"""A whole run, from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gkd_fast import parallel
from gkd_fast.config import Config, validate
from gkd_fast.data import as_dataset
from gkd_fast.options import changed
from gkd_fast.runs.data import Images
from gkd_fast.runs.dry_run import dry_run
from gkd_fast.runs.folders import run_folder, stored_folder
from gkd_fast.runs.job import Result, run
from gkd_fast.runs.settle import settle
from gkd_fast.runs.start import FIRST, run_start
from gkd_fast.training.distributed import check, process_group
from gkd_fast.training.precision import resolve_device


def train(*, train_data: Any = None, val_data: Any = None, **options: Any) -> Result | None:
    """Train a teacher (or take a finished one), the student alone, and the distilled student; evaluate all three.

        summary = gkd_fast.train(preset="bccd", data_root="BCCD_Dataset/BCCD", epochs=2, output="runs/mine")

    Args:
        train_data, val_data: data sets, instead of the options that name one: torchvision's `CocoDetection` or
            `VOCDetection`, or splits of Hugging Face's datasets (see `gkd_fast.data.as_dataset`).
        options: those of ``gkd-fast train`` by name, ``teacher_width=0.5`` for ``--teacher-width 0.5``. What is left
            out is as on the command line: as the presets say, and as in the run that ``resume=True`` goes on with.

    Returns:
        The content of the run's ``summary.json`` and, as ``folder``, where the run lies; None in the processes of
        torchrun that are not the first. With ``dry_run=True``: what two steps showed.

    Raises:
        TypeError: for an option that does not exist, or a value of another type.
        InputError: for input that cannot be used.
        RunError: if the run cannot go on.
    """
    own = None
    if (train_data is None) != (val_data is None):
        raise TypeError("train_data, val_data: expected both or neither")
    if train_data is not None:
        train_images = as_dataset(train_data, classes=options.get("classes", ()))
        own = Images(train_images, as_dataset(val_data, classes=train_images.classes, levels=train_images.levels))
        options = {"data": "objects", **options}
    config = changed(run_start({name: options.get(name) for name in FIRST}), options)
    validate(config)
    if config.run.dry_run:
        return dataclasses.asdict(dry_run(config))
    return run_in_folder(config, options.keys(), own)


def run_in_folder(config: Config, given: Collection[str], own: Images | None = None) -> Result | None:
    """Run the main job in the folder that its settings ask for, in all processes that torchrun started.

    Args:
        config: validated.
        given: names of the options that were given; others are chosen for data of one's own.
        own: images that are read already, instead of those that the settings name.

    Returns:
        The summary and, as ``folder``, where the run lies; None in processes that are not the first.
    """
    with process_group(resolve_device(config.run.device)):
        config, images = settle(config, given, new=stored_folder(config) is None, own=own)
        check(config)
        folder = parallel.from_main(run_folder(config) if parallel.is_main() else Path())
        summary = run(config, folder, images)
        return {"folder": str(folder), **summary} if parallel.is_main() else None
