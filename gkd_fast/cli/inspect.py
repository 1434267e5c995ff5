"""``gkd-fast inspect``: what is in a data set, and whether it is read right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from gkd_fast.cli.first_stage import first_stage
from gkd_fast.cli.parsing import given_options, parse
from gkd_fast.config import Config
from gkd_fast.data.settings import DataConfig
from gkd_fast.errors import InputError
from gkd_fast.options import MAIN, changed, values_of
from gkd_fast.presets import starting_point
from gkd_fast.ranges import POSITIVE
from gkd_fast.runs.start import check_files

_DESCRIPTION = """Read a data set as training would, print what is in it and the settings that training would choose,
and write one self-contained HTML page: class counts, box sizes and shapes against the anchors, drawn examples of every
class, the dirtiest files. Nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """A look at a data set."""

    output: Annotated[Path, MAIN] = Path("inspect.html")
    """Page to write."""
    examples: Annotated[int, POSITIVE, MAIN] = 10
    """Drawn examples of a class, from its smallest box to its largest."""
    device: Annotated[Literal["auto", "cpu", "cuda"], MAIN] = "auto"
    """Device that settings are chosen for; auto: the GPU where one is there."""
    preset: Annotated[str, MAIN] = ""
    """Named settings to start from, as for training; then none are chosen from the data."""
    detector: Annotated[Literal["faster_rcnn", "retinanet"], MAIN] = "faster_rcnn"
    """Detector whose pyramid and anchors the boxes are held against."""
    anchor_size: Annotated[int, POSITIVE, MAIN] = 12
    """Side of the smallest anchors, in pixels; chosen from the data where it is not given."""
    data: DataConfig = field(default_factory=DataConfig)


def main(arguments: Sequence[str]) -> None:
    """Parse, read, print, write."""
    options, config = read(arguments)
    if not options.output.parent.is_dir():
        raise InputError(f"--output: expected a file in a folder that exists, got {options.output}")
    check_files(config)
    from gkd_fast.files import replacing
    from gkd_fast.inspect.boxes import class_table
    from gkd_fast.inspect.inspection import inspect_data
    from gkd_fast.inspect.page import page
    from gkd_fast.inspect.remarks import anchor_line, remarks
    from gkd_fast.runs.choice import lines

    inspection = inspect_data(config, given_options(arguments, InspectConfig))
    print("\n".join(class_table(inspection.facts)))
    if inspection.choices:
        print("\n".join(lines(inspection.choices)))
    print(anchor_line(inspection))
    for remark in remarks(inspection):
        print(f"note: {remark}")
    document = page(inspection, examples=options.examples)
    with replacing(options.output) as temporary:
        # Names of files may hold bytes that are no text.
        temporary.write_text(document, encoding="utf-8", errors="replace")
    print(f"{options.output}: {len(document) / 1e6:.1f} MB")


def read(arguments: Sequence[str]) -> tuple[InspectConfig, Config]:
    """The options of a command line, and the settings that training would start from with them."""
    first, arguments = first_stage(arguments, "preset", "data", "data_root", "train_annotations")
    start = starting_point(vars(first))
    own = InspectConfig(
        preset=start.preset, detector=start.model.detector, anchor_size=start.model.anchor_size, data=start.data
    )
    options = parse(arguments, "inspect", _DESCRIPTION, own)
    shared = {name: value for name, value in values_of(options).items() if name not in ("examples", "output")}
    return options, changed(start, shared)
