"""Checkpoints that the real libraries write are converted, and detect what the libraries themselves detect.

Each library runs in a Python of its own: GKD_MMDET3, GKD_MMDET2 and GKD_DETECTRON2 name the interpreters, see
CONTRIBUTING.md for the versions. GKD_REAL=all runs every case, otherwise a few small ones run.
"""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest
from comparison import compared, converted, detections
from outcomes import read

from gkd_fast.errors import InputError

HERE = Path(__file__).parent
SCRIPTS = {"GKD_MMDET3": "with_mmdet3.py", "GKD_MMDET2": "with_mmdet2.py", "GKD_DETECTRON2": "with_detectron2.py"}
LIBRARIES = {
    "GKD_MMDET3": "onedl-mmdetection 3.5.1",
    "GKD_MMDET2": "mmdet 2.28.2",
    "GKD_DETECTRON2": "detectron2 0.6",
}
FEW = ("frcnn_r18", "retina_r18", "frcnn_ema", "frcnn_trained_ema", "frcnn_c3", "mask_rcnn", "frcnn_anchors")
REFUSED = {
    "soft_nms": r"nms.type = 'soft_nms' cannot be taken over",
    "cascade": "a Cascade R-CNN",
    "dcn": "deformable convolutions in the backbone",
    "gn": "normalisation in RetinaNet's heads",
    "fcos_rpn": "a Faster R-CNN with proposals of FCOS",
    "fpn_gn": "normalisation in the pyramid",
    "backbone_gn": r"group normalisation \(GN\), or none, in the backbone",
    "retina_gn": "normalisation in RetinaNet's heads",
    "3_convolutions": "a RetinaNet with 3 convolutions in its heads",
    "c4": "a C4 or DC5 detector",
}


def named(script: str) -> list[str]:
    """The cases of a script, which cannot be imported without its library."""
    tree = ast.parse((HERE / script).read_text())
    (table,) = (s for s in tree.body if isinstance(s, ast.AnnAssign) and s.target.id == "CASES")
    return [key.value for key in table.value.keys]


def cases() -> list[tuple[str, str]]:
    every = os.environ.get("GKD_REAL") == "all"
    return [
        (variable, name)
        for variable, script in SCRIPTS.items()
        for name in named(script)
        if every or name in FEW or name.startswith("refused")
    ]


@pytest.mark.parametrize(("variable", "name"), cases())
def test_a_checkpoint_of_the_library(variable: str, name: str, tmp_path: Path) -> None:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable}: no Python with {LIBRARIES[variable]} is named")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, SCRIPTS[variable], str(tmp_path), name], cwd=HERE, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if name.startswith("refused_"):
        with pytest.raises(InputError, match=REFUSED[name.removeprefix("refused_")]) as caught:
            converted(tmp_path / name)
        assert "\n" not in str(caught.value)
        return
    converted(tmp_path / name)
    rows = compared(read(tmp_path / name / "theirs.npz"), detections(tmp_path / name / "converted.pt"))
    assert all(row.whole for row in rows.values()), rows
