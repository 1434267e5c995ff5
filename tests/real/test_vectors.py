"""Converted detectors find what mmdet 3.5, mmdet 2.28 and detectron2 0.6 themselves found with the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cases
import configurations
import networks
import pytest
import torch
from comparison import compared, found_by
from outcomes import NAMES3, read

from gkd_fast.convert import Converted, Source, convert
from gkd_fast.detectors import build_detector
from gkd_fast.detectors.foreign_files import ForeignCheckpoint

VECTORS = Path(__file__).with_name("vectors")
LIBRARIES = {"mmdet3": cases.MMDET3, "mmdet2": cases.MMDET2, "detectron2": cases.DETECTRON2}
ALL = [(library, name) for library, own in LIBRARIES.items() for name in own]


def vector(library: str, name: str) -> Path:
    return VECTORS / f"{library}_{name.removeprefix('vector_')}.npz"


def converted(library: str, name: str, folder: Path) -> Converted:
    """From the weights by the library's names, and a configuration in its form."""
    shapes, factors, _ = networks.load(vector(library, name))
    kind, settings = LIBRARIES[library][name]
    state, source, text = networks.state(shapes, factors), Source(), ""
    if library == "detectron2":
        source = Source(config=configurations.detectron2(kind, settings, folder / "config.yaml"))
    else:
        text = (configurations.mmdet3 if library == "mmdet3" else configurations.mmdet2)(kind, settings)
    return convert(ForeignCheckpoint(state, NAMES3, text), replace(source, classes=NAMES3), name)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("library", "name"), ALL)
def test_boxes_scores_and_classes_are_the_librarys(library: str, name: str, tmp_path: Path) -> None:
    done = converted(library, name, tmp_path)
    rows = compared(read(vector(library, name)), found_by(done.model, done.sides, done.spec.conventions.resize))
    assert all(row.whole for row in rows.values()), rows
    assert min(row.theirs for row in rows.values()) > 50


# Of each convention another value, and a case that sees it.
WRONG = {
    "image_mean": ("mmdet3", "vector_frcnn", (0.0, 0.0, 0.0)),
    "image_std": ("mmdet3", "vector_frcnn", (50.0, 50.0, 50.0)),
    "bgr": ("detectron2", "vector_frcnn", False),
    "stride_in_1x1": ("detectron2", "vector_frcnn", False),
    "rounded_anchors": ("mmdet3", "vector_retina_settings", True),
    "measured_strides": ("mmdet3", "vector_retina", True),
    "roi_aligned": ("mmdet3", "vector_frcnn_settings", True),
    "roi_sampling": ("mmdet3", "vector_frcnn_settings", 1),
    "box_weights": ("mmdet3", "vector_frcnn_settings", (10.0, 10.0, 5.0, 5.0)),
    "limit_shrinking": None,  # tests/detectors/test_convert.py
    "smallest_proposal": ("mmdet3", "vector_frcnn_settings", 40.0),
    "norm_without_epsilon": None,  # tests/detectors/test_torchvision_files.py
    "anchor_sizes": ("mmdet3", "vector_frcnn_settings", tuple((32.0 * 2**n, 80.0 * 2**n) for n in range(5))),
    "anchor_ratios": ("mmdet3", "vector_frcnn_settings", (0.5, 1.0)),
    "anchor_weights": ("mmdet3", "vector_frcnn_settings", (1.0, 1.0, 1.0, 1.0)),
    "candidates": ("mmdet3", "vector_frcnn_settings", 50),
    "proposal_overlap": ("mmdet3", "vector_frcnn_settings", 0.8),
    "detection_overlap": ("mmdet3", "vector_frcnn_settings", 0.6),
    "least_score": ("mmdet3", "vector_retina", 0.9),
    "clip_after_nms": ("detectron2", "vector_retina", False),
    "empty_boxes": None,  # tests/detectors/test_ordered.py
    "resize": ("mmdet3", "vector_frcnn", "antialiased"),
    "extra_levels": None,  # of another shape
    "relu_before_p7": None,  # tests/detectors/test_convert.py
}


@pytest.mark.parametrize("field", [name for name, case in WRONG.items() if case])
def test_every_convention_matters(field: str, tmp_path: Path) -> None:
    library, name, value = WRONG[field]
    done = converted(library, name, tmp_path)
    conventions = replace(done.spec.conventions, **{field: value})
    assert conventions != done.spec.conventions
    model = build_detector(replace(done.spec, conventions=conventions), len(NAMES3)).eval()
    model.load_state_dict(done.model.state_dict())
    rows = compared(read(vector(library, name)), found_by(model, done.sides, conventions.resize))
    assert not all(row.whole for row in rows.values())


def test_every_convention_is_named() -> None:
    done = type(converted("mmdet3", "vector_retina_settings", VECTORS).spec.conventions)
    assert set(WRONG) == set(done.__dataclass_fields__)
