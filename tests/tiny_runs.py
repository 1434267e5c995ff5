"""Networks small enough to train in seconds, as settings and as a command line."""

from __future__ import annotations

TINY_MODEL = {
    "teacher": "mobilenet_v2",
    "teacher_width": 0.25,
    "student_width": 0.1,
    "teacher_channels": 24,
    "student_channels": 16,
    "teacher_head": 32,
    "student_head": 32,
    "proposals": 30,
    "rois": 16,
    "anchor_size": 16,
}


def tiny_run(more: str = "", *, train: int, val: int, side: int = 64, epochs: int = 2) -> list[str]:
    """Options of `gkd_fast.train`: a teacher of one epoch and students on square scenes, 4 images a step, on the CPU.

    Args:
        more: further options.
        train: training images.
        val: validation images.
        side: of the images, in pixels.
        epochs: of the students.
    """
    model = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in TINY_MODEL.items())
    data = f"--scenes-train {train} --scenes-val {val} --short-side {side} --long-side {side}"
    length = f"--batch-size 4 --teacher-batch-size 0 --epochs {epochs} --teacher-epochs 1"
    return f"{model} {data} {length} --device cpu {more}".split()
