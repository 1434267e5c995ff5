"""Ultralytics YOLO 11 or 26, in Ultralytics' own trainer. Ultralytics is licensed under the AGPL-3.0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ultralytics import YOLO

import cells
from gkd_fast.integrations.ultralytics import distil


def main(arguments: Sequence[str] | None = None) -> Path:
    parser = cells.options(__doc__, model=["yolo11", "yolo26"])
    parser.add_argument("--epochs", type=int, default=4, help="of the teacher and of the student")
    parser.add_argument("--output", type=Path, default=Path("runs/ultralytics"), help="folder for everything")
    options = parser.parse_args(arguments)
    data = cells.write_yolo(cells.load(options), options.output / "data")
    settings = {"data": data, "epochs": options.epochs, "batch": options.batch, "imgsz": options.size}
    settings |= {"project": str(options.output.resolve()), "exist_ok": True, "plots": False, "workers": 0}
    settings |= {"device": "cpu", "amp": False, "optimizer": "AdamW", "lr0": 1e-3, "warmup_epochs": 0}
    YOLO(f"{options.model}s.yaml").train(name="teacher", **settings)

    # ---- distilling: one argument
    trainer = distil(options.output / "teacher/weights/last.pt", method=options.method, min_box=8)
    YOLO(f"{options.model}n.yaml").train(name="student", trainer=trainer, **settings)
    # ----
    return options.output / "student"


if __name__ == "__main__":
    main()
