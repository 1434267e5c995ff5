"""``gkd-fast report``: one page about finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gkd_fast.cli.parsing import parse
from gkd_fast.errors import InputError
from gkd_fast.ranges import FRACTION, POSITIVE
from gkd_fast.report.runs import read_runs

_DESCRIPTION = """Write one self-contained HTML page about finished runs: average precision, training curves, and of
every run the prototypes, the instances trusted most and least, and detections with and without distillation."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A page about runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs."""
    output: Path = Path("report.html")
    """File to write."""
    pictures: bool = True
    """Show prototypes, robust weights and detections (needs the data of the runs)."""
    images: Annotated[int, POSITIVE] = 6
    """Images with detections, of each run."""
    prototypes: Annotated[int, POSITIVE] = 8
    """Most prototypes shown of a class and level."""
    score: Annotated[float, FRACTION] = 0.5
    """Least score of a detection that is shown, from 0 to 1."""
    tensorboard: Path | None = None
    """Folder for the metrics as TensorBoard event files; none: none are written."""


def main(arguments: Sequence[str]) -> None:
    """Parse, read, write."""
    options = parse(arguments, "report", _DESCRIPTION, ReportConfig())
    if not options.output.parent.is_dir():
        raise InputError(f"--output: expected a file in a folder that exists, got {options.output}")
    runs = read_runs(list(options.runs))
    from gkd_fast.files import replacing
    from gkd_fast.report.page import page
    from gkd_fast.report.tensorboard import write_events

    if options.tensorboard:
        write_events(runs, options.tensorboard)
        print(f"TensorBoard events: {options.tensorboard}")
    document = page(
        runs,
        pictures=options.pictures,
        images=options.images,
        prototypes=options.prototypes,
        score=options.score,
    )
    with replacing(options.output) as temporary:
        temporary.write_text(document, encoding="utf-8")
    print(f"{options.output}: {len(document) / 1e6:.1f} MB")
